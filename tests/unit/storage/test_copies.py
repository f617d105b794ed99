"""Copies: what is durable is in the storage, and another node, or a later driver, begins with what the storage has."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.journal import DurableController
from orchestrator.mixing import Measured, build_mixing_algorithm, resolve_mixing
from orchestrator.mixing.base import Domain
from orchestrator.mixing.uniform import UniformConfig
from tests.objects import ObjectServer
from workers.durable import commit_folder, remove, remove_folder, temporary_folder, write_durably
from workers.events import log_event
from workers.storage import client, mirror
from workers.storage.addresses import place_of
from workers.storage.checkpoints import (
    MANIFEST,
    StoredCheckpoint,
    best_name,
    drop_best,
    fetch_checkpoint_file,
    orphans,
    seal,
    stored_sizes,
)
from workers.storage.client import StorageError
from workers.storage.lines import LinePublisher
from workers.storage.mirror import fetch_folder, publish_missing, sha256
from workers.storage.run_copy import claim_for_ranks, fetch_small, follow_ranks, following, refresh_for_ranks, restore


class Node:
    """A node of its own, by its cache."""

    def __init__(self, name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._name, self._uri, self._caches, self._monkeypatch = name, uri, tmp_path / "caches", monkeypatch

    def enter(self) -> Path:
        """Work there from now on; the copy of the run."""
        self._monkeypatch.setenv("RAYMIX_CACHE", str(self._caches / self._name))
        return place_of(self._uri)


@pytest.fixture
def nodes(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Node, Node]:
    one, two = (Node(name, f"{uri}/run", tmp_path, monkeypatch) for name in ("one", "two"))
    return one, two


def stored(uri: str) -> dict[str, bytes]:
    return {name: client.get_bytes(f"{uri}/{name}") or b"" for name in client.list_objects(uri)}


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content if isinstance(content, bytes) else content.encode())


def write_checkpoint(run: Path, name: str, content: bytes, stored_as: str | None = None) -> Path:
    """A checkpoint of two files, as ranks and rank 0 store it."""
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    target = StoredCheckpoint(folder.parent, stored_as or name, None, keeps_copy=True)
    files: dict[str, Any] = {}
    for part in ("masters-00000.safetensors", "state.json"):
        (folder / part).write_bytes(content + part.encode())
        files[part] = {"size": (folder / part).stat().st_size, "sha256": sha256(folder / part)}
    target.publish(folder / "masters-00000.safetensors")
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    seal(folder, stored_as or name)
    return folder


def test_what_is_written_durably_is_in_the_storage_and_what_is_removed_is_not(uri: str) -> None:
    run = place_of(f"{uri}/run")
    write(run / "weights" / "000000.json", "{}")
    write(run / "weights" / "000000.json", '{"a": 1}')
    write(run / "failure.json", "{}")
    assert stored(f"{uri}/run") == {"weights/000000.json": b'{"a": 1}', "failure.json": b"{}"}
    remove(run / "failure.json")
    remove(run / "failure.json")
    remove_folder(run / "weights")
    assert stored(f"{uri}/run") == {} and not (run / "weights").exists()


def test_an_ordinary_path_never_asks_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "open_objects", lambda uri: pytest.fail(f"asked for {uri}"))
    run = tmp_path / "runs" / "a"
    write(run / "weights" / "000000.json", "{}")
    commit_folder(temporary_folder(run / "model"), run / "model")
    fetch_folder(run / "model")
    restore(run, is_newest=False)
    refresh_for_ranks(run, "x", True)
    with following(run):
        log_event(run, 0, "kind", "message")
    LinePublisher(run, {"events.jsonl": "events.jsonl"}).close()
    remove_folder(run / "model")
    assert sorted(path.name for path in run.rglob("*")) == ["000000.json", "events.jsonl", "weights"]


def test_a_folder_is_whole_or_absent_and_compared_with_its_record(nodes: tuple[Node, Node], uri: str) -> None:
    model = nodes[0].enter() / "model"
    temporary = temporary_folder(model)
    (temporary / "adapter").mkdir()
    (temporary / "adapter" / "a.json").write_text("{}")
    (temporary / "weights").write_bytes(b"first")
    commit_folder(temporary, model)
    elsewhere = nodes[1].enter() / "model"
    fetch_folder(elsewhere)
    assert (elsewhere / "weights").read_bytes() == b"first" and (elsewhere / "adapter" / "a.json").exists()

    model = nodes[0].enter() / "model"
    temporary = temporary_folder(model)
    (temporary / "weights").write_bytes(b"other")
    commit_folder(temporary, model)
    assert set(stored(f"{uri}/run/model")) == {"weights", ".files.json"}
    elsewhere = nodes[1].enter() / "model"
    restore(elsewhere.parent, is_newest=False)
    assert not elsewhere.exists()  # an older one
    client.put(f"{uri}/run/model/weights", b"wrong")
    with pytest.raises(StorageError, match="model/weights is damaged: it does not have the SHA-256"):
        fetch_folder(elsewhere)
    client.delete(f"{uri}/run/model/weights")
    with pytest.raises(StorageError, match="model/weights is missing, though"):
        fetch_folder(elsewhere)
    client.delete(f"{uri}/run/model/{mirror.RECORD}")
    fetch_folder(elsewhere)
    assert not elsewhere.exists()


def test_another_node_begins_with_what_the_storage_has(nodes: tuple[Node, Node], uri: str) -> None:
    run = nodes[0].enter()
    write(run / "feedback" / "00000004.json", "old")
    write(run / "config.json", "{}")
    there = nodes[1].enter()
    write(there / "feedback" / "00000004.json", "new")
    write(there / "evaluations" / "00000004.npz", "npz")
    (there / "feedback" / "00000008.json").write_text("never announced")
    (there / "metrics.jsonl").write_text("line\n")
    LinePublisher(there, {"metrics.jsonl": "metrics.jsonl"}).close()

    run = nodes[0].enter()
    (run / "feedback" / "00000008.json").write_text("never announced here")
    (run / "samples.jsonl").write_text("of an attempt that the storage does not know\n")
    restore(run, is_newest=False)
    found = {str(path.relative_to(run)): path.read_text() for path in run.rglob("*") if path.is_file()}
    assert found == {
        "config.json": "{}",
        "metrics.jsonl": "line\n",
        "feedback/00000004.json": "new",
        "evaluations/00000004.npz": "npz",
    }


def test_the_newest_copy_keeps_lines_that_the_storage_does_not_have_yet(uri: str) -> None:
    run = place_of(f"{uri}/run")
    write(run / "config.json", "{}")
    (run / "metrics.jsonl").write_text("1\n")
    lines = LinePublisher(run, {"metrics.jsonl": "metrics.jsonl"})
    lines.close()
    (run / "metrics.jsonl").write_text("1\n2\n")
    (run / "feedback").mkdir()
    (run / "feedback" / "00000004.json").write_text("never announced")
    restore(run, is_newest=True)
    assert (run / "metrics.jsonl").read_text() == "1\n2\n"
    assert list((run / "feedback").iterdir()) == []
    restore(run, is_newest=False)
    assert (run / "metrics.jsonl").read_text() == "1\n"


def test_lines_are_published_while_they_grow(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.storage.lines.EVERY_SECONDS", 0.1)
    run = place_of(f"{uri}/run")
    log_event(run_of(run), 0, "kind", "one")
    lines = LinePublisher(run, {"events.jsonl": "events-x.jsonl"})
    for message in ("two", "three"):
        log_event(run, 0, "kind", message)
        until = time.monotonic() + 10
        while message.encode() not in (client.get_bytes(f"{uri}/run/events-x.jsonl") or b""):
            assert time.monotonic() < until
            time.sleep(0.05)
    log_event(run, 0, "kind", "four")
    lines.close()
    assert (client.get_bytes(f"{uri}/run/events-x.jsonl") or b"").count(b"\n") == 4


def run_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_checkpoints_come_down_as_they_are_read_and_only_whole_ones(nodes: tuple[Node, Node], uri: str) -> None:
    run = nodes[0].enter()
    write_checkpoint(run, "step-00000010", b"ten")
    write_checkpoint(run, "step-00000020", b"twenty")
    (run / "checkpoints" / "step-00000030").mkdir()  # the copy of one whose manifest never came
    client.put(f"{uri}/run/checkpoints/step-00000030/masters-00000.safetensors", b"half")
    remove_folder(run / "checkpoints" / "step-00000010", MANIFEST)
    assert list(orphans(client.list_objects(f"{uri}/run/checkpoints"))) == ["step-00000030/masters-00000.safetensors"]

    there = nodes[1].enter()
    restore(there, is_newest=False)
    (checkpoint,) = (there / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000020"
    assert sorted(path.name for path in checkpoint.iterdir()) == ["manifest.json", "state.json"]
    assert stored_sizes(checkpoint)["masters-00000.safetensors"] == len(b"twentymasters-00000.safetensors")
    fetch_checkpoint_file(checkpoint / "masters-00000.safetensors")
    assert (checkpoint / "masters-00000.safetensors").read_bytes() == b"twentymasters-00000.safetensors"
    assert not any("step-00000030" in name for name in client.list_objects(f"{uri}/run"))

    (checkpoint / "masters-00000.safetensors").unlink()
    client.put(f"{uri}/run/checkpoints/step-00000020/masters-00000.safetensors", b"x" * 31)
    with pytest.raises(StorageError, match="is damaged"):
        fetch_checkpoint_file(checkpoint / "masters-00000.safetensors")


def test_the_newest_whole_best_model_counts(nodes: tuple[Node, Node], uri: str) -> None:
    run = nodes[0].enter()
    write_checkpoint(run, "best", b"first", best_name(4))
    client.put(f"{uri}/run/checkpoints/{best_name(8)}/masters-00000.safetensors", b"half")
    there = nodes[1].enter()
    restore(there, is_newest=False)
    best = there / "checkpoints" / "best"
    fetch_checkpoint_file(best / "masters-00000.safetensors")
    assert (best / "masters-00000.safetensors").read_bytes() == b"firstmasters-00000.safetensors"

    write_checkpoint(place_of(f"{uri}/run"), "best-00000009", b"newer")  # the older one was about to be removed
    restore(there, is_newest=False)
    assert (best / "state.json").read_bytes() == b"newerstate.json"
    run = nodes[0].enter()
    remove_local(run / "checkpoints" / "best")
    write_checkpoint(run, "best", b"second", best_name(12))
    assert {name.split("/")[0] for name in client.list_objects(f"{uri}/run/checkpoints")} == {best_name(12)}
    restore(nodes[1].enter(), is_newest=False)
    assert (best / "state.json").read_bytes() == b"secondstate.json"
    drop_best(best.parent)
    assert client.list_objects(f"{uri}/run/checkpoints") == {}


def remove_local(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_driver_follows_ranks_on_another_node_and_they_follow_it(nodes: tuple[Node, Node], uri: str) -> None:
    run = nodes[0].enter()
    write(run / "config.json", "{}")
    write(run / "feedback" / "00000000.json", "{}")
    log_event(run, 0, "attempt", "of the driver")
    there = nodes[1].enter()
    refresh_for_ranks(there, "two", False)
    assert (there / "feedback" / "00000000.json").exists() and not (there / "events.jsonl").exists()
    claim_for_ranks(there, "two")
    (there / "metrics.jsonl").write_text("1\n")
    log_event(there, 4, "packing", "of a rank")
    write(there / "evaluations" / "00000004.npz", "npz")
    write_checkpoint(there, "step-00000010", b"ten")
    LinePublisher(there, {"metrics.jsonl": "metrics.jsonl", "events.jsonl": "events-two.jsonl"}).close()

    run = nodes[0].enter()
    assert not follow_ranks(run, "two") and not (run / "metrics.jsonl").exists()  # they would be on this node
    for _ in range(2):
        assert follow_ranks(run, "one")
    assert (run / "metrics.jsonl").read_text() == "1\n"
    events = [json.loads(line)["message"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["of the driver", "of a rank"]
    assert (run / "checkpoints" / "step-00000010" / MANIFEST).exists()
    assert not (run / "evaluations").exists()
    follow_ranks(run, "one", is_over=True)
    assert (run / "evaluations" / "00000004.npz").read_text() == "npz"

    # The group is replaced by one on the driver's node, whose copy is older.
    (run / "metrics.jsonl").write_text("older\n")
    write(run / "evaluations" / "00000002.npz", "of an attempt before")
    client.delete(f"{uri}/run/evaluations/00000002.npz")
    refresh_for_ranks(run, "one", True)
    assert (run / "metrics.jsonl").read_text() == "1\n"
    assert [path.name for path in (run / "evaluations").iterdir()] == ["00000004.npz"]
    assert "of the driver" in (run / "events.jsonl").read_text()


def test_a_request_of_a_user_elsewhere_reaches_the_driver(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.storage.run_copy.EVERY_SECONDS", 0.1)
    write(nodes[1].enter() / "requests" / "1.json", "{}")
    run = run_of(nodes[0].enter())
    with following(run):
        until = time.monotonic() + 10
        while not (run / "requests" / "1.json").exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_journal_is_in_the_storage_before_it_is_announced(uri: str) -> None:
    run = place_of(f"{uri}/run")
    domains = [Domain(name, 10, 100) for name in ("a", "b")]
    mixing = resolve_mixing(UniformConfig(), Measured(), ["a", "b"])

    def open_controller() -> DurableController:
        return DurableController(run, "id", build_mixing_algorithm(mixing, domains))

    controller = open_controller()
    assert stored(f"{uri}/run").keys() == {"weights/000000.json"}
    assert controller.open_attempt() == 1
    assert json.loads(stored(f"{uri}/run")["attempt.json"]) == {"attempt": 1}
    # A process that was killed between writing a file and storing it.
    (run / "feedback" / "00000000.json").write_bytes(
        json.dumps(
            {"run_id": "id", "attempt": 1, "step": 0, "weights_version": 0,
             "loss_sum_nats": {"a": 1.0, "b": 1.0}, "num_tokens": {"a": 1, "b": 1}, "signals": {}}
        ).encode()
    )  # fmt: skip
    open_controller()
    assert "feedback/00000000.json" in stored(f"{uri}/run")


def test_a_wait_for_the_server_is_an_event_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ObjectServer(tmp_path / "mortal")
    for name, value in (server.environment | {"RAYMIX_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    run = place_of("s3://team/run")
    run.mkdir(parents=True)
    log_event(run, 0, "kind", "first")
    server.kill()
    back = threading.Timer(2, server.start)
    back.start()
    write(run / "weights" / "000001.json", "{}")
    back.join()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["kind", "storage", "storage"]
    assert client.get_bytes("s3://team/run/weights/000001.json") == b"{}"
    server.close()


def test_a_reader_gets_the_small_files_of_a_run(nodes: tuple[Node, Node], uri: str) -> None:
    run = nodes[0].enter()
    write(run / "config.json", "{}")
    write_checkpoint(run, "step-00000010", b"ten")
    there = nodes[1].enter()
    assert fetch_small(there)
    assert [path.name for path in there.iterdir()] == ["config.json"]
    assert not fetch_small(place_of(f"{uri}/another"))
    publish_missing(run)  # of a folder on another node's cache: nothing
