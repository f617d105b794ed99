"""Runs of object storage as the dashboard reads them."""

import pytest
from filelock import FileLock

from orchestrator.dashboard.catalog import Catalog
from orchestrator.dashboard.states import run_state
from workers.storage import client
from workers.storage.addresses import place_of
from workers.storage.reading import StoredRuns
from workers.storage.run_copy import DRIVER_LOCK


def test_copies_follow_the_storage(uri: str) -> None:
    begun = b'{"name": "a", "domains": {}, "mixing": {}}'
    client.put(f"{uri}/sweep/a/config.json", begun)
    client.put(f"{uri}/sweep/a/metrics.jsonl", b'{"step": 1}\n')
    client.put(f"{uri}/sweep/a/stopped.json", b"{}")
    client.put(f"{uri}/sweep/a/model/config.json", b"{}")
    client.put(f"{uri}/sweep/a/checkpoints/step-00000001/manifest.json", b"{}")
    place = place_of(uri)
    runs = StoredRuns(place)
    runs.refresh()
    assert Catalog(place).names() == ["sweep/a"]
    run = place / "sweep" / "a"
    assert not (run / "model").exists() and not (run / "checkpoints").exists()
    written_at = client.list_objects(uri)["sweep/a/metrics.jsonl"].modified_at
    assert (run / "metrics.jsonl").stat().st_mtime == pytest.approx(written_at) and written_at > 0

    client.put(f"{uri}/sweep/a/metrics.jsonl", b'{"step": 9}\n')  # as long as before
    client.delete(f"{uri}/sweep/a/stopped.json")
    (run / "config.json").write_bytes(b"{}")  # which nobody fetches again: the storage has the same
    runs.refresh()
    assert (run / "metrics.jsonl").read_bytes() == b'{"step": 9}\n'
    assert not (run / "stopped.json").exists()
    assert (run / "config.json").read_bytes() == b"{}"


def test_a_run_that_was_written_just_now_runs_elsewhere_and_an_old_one_does_not(uri: str) -> None:
    client.put(f"{uri}/a/config.json", b"{}")
    place = place_of(uri)
    StoredRuns(place).refresh()
    now = (place / "a" / "config.json").stat().st_mtime
    assert run_state(place / "a", {}, True, now, 1.0) == "running"
    assert run_state(place / "a", {}, True, now - 600, 1.0) == "stopped"


def test_the_copy_of_a_driver_on_this_node_is_left_alone(uri: str) -> None:
    client.put(f"{uri}/a/config.json", b"{}")
    run = place_of(uri) / "a"
    run.mkdir(parents=True)
    (run / "config.json").write_bytes(b'{"newer": 1}')
    with FileLock(run / DRIVER_LOCK):
        StoredRuns(place_of(uri)).refresh()
    assert (run / "config.json").read_bytes() == b'{"newer": 1}'
