"""Which runs are found, what is said of them, and that no name leads out of the folder."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from orchestrator.dashboard import states
from orchestrator.dashboard.catalog import Catalog, UnknownRunError
from orchestrator.dashboard.states import lock_holders, run_state
from tests.unit.conftest import MakeFakeRun


def state_of(folder: Path, silent_seconds: float = 1000.0, seconds_per_step: float = math.nan) -> str:
    return run_state(folder, lock_holders(), True, time.time() - silent_seconds, seconds_per_step)


def test_runs_are_found_at_every_depth_and_models_are_none(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    for name in ("one", "study-compare/a-seed0", "study-compare/b-seed0", "chain/stages/first"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        fake_run(name, total_steps=20, every=10)
    for model in ("one/model", "base", ".hidden/run"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    names = {"one", "study-compare/a-seed0", "study-compare/b-seed0", "chain/stages/first"}
    catalog = Catalog(tmp_path)
    assert set(catalog.names()) == names
    assert {glance.name: glance.group for glance in catalog.glances()}["chain/stages/first"] == "chain/stages"
    assert Catalog(tmp_path / "one").names() == ["."]


def test_a_line_about_a_run(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    done = fake_run("done", total_steps=40, every=20)
    half = fake_run("half", total_steps=40, num_steps=30, every=20)
    glances = {glance.name: glance for glance in Catalog(tmp_path).glances()}
    assert (glances["done"].state, glances["done"].step, glances["done"].total_steps) == ("finished", 40, 40)
    assert (glances["half"].step, glances["half"].total_steps, glances["half"].mixing) == (30, 40, "versatune")
    for name, run, step in (("done", done, 40), ("half", half, 20)):
        losses = run.losses[step].values()
        assert glances[name].mean_loss_nats == pytest.approx(sum(losses) / len(losses))
        assert glances[name].base_loss_nats == pytest.approx(sum(run.losses[0].values()) / len(losses))
    assert glances["half"].tokens_per_second == pytest.approx(5120, rel=0.1)


def test_a_line_follows_its_run(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    run = fake_run("half", total_steps=60, num_steps=30, every=20)
    catalog = Catalog(tmp_path)
    assert catalog.glances()[0].step == 30
    run.write_steps(31, 45)
    assert catalog.glances()[0].step == 45


def test_the_newest_come_first_and_groups_stay_together(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    for age, name in ((500, "group/a"), (400, "old"), (300, "group/b"), (100, "new")):
        run = fake_run(name, total_steps=20, every=20)
        for path in [run.path, *run.path.rglob("*")]:
            os.utime(path, (time.time() - age, time.time() - age))
    assert [glance.name for glance in Catalog(tmp_path).glances()] == ["new", "group/b", "group/a", "old"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "../outside", "inside/../../outside", "inside/../inside", "/etc", "{outside}", "~"),
        *("link", "link/.", "loop", "model", "missing", "inside/config.json", "inside/\0", "x" * 5000),
    ],
)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path, fake_run: MakeFakeRun) -> None:
    (tmp_path / "runs").mkdir()
    fake_run("runs/inside", total_steps=20, every=20)
    outside = fake_run("outside", total_steps=20, every=20).path
    (tmp_path / "runs" / "link").symlink_to(outside)
    (tmp_path / "runs" / "loop").symlink_to("loop")
    (tmp_path / "runs" / "model").mkdir()
    catalog = Catalog(tmp_path / "runs")
    with pytest.raises(UnknownRunError):
        catalog.folder(name.format(outside=outside))
    assert catalog.names() == ["inside"]
    assert catalog.folder("inside") == (tmp_path / "runs" / "inside").resolve()


def test_the_folder_itself_may_be_a_link(tmp_path: Path, fake_run: MakeFakeRun) -> None:
    run = fake_run("disk/run", total_steps=20, every=20) if (tmp_path / "disk").mkdir() is None else None
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert run is not None and Catalog(tmp_path / "runs").folder("run") == run.path.resolve()


def test_a_run_is_running_while_its_driver_holds_it(fake_run: MakeFakeRun) -> None:
    folder = fake_run("live", total_steps=40, num_steps=10).path
    assert state_of(folder) == "stopped"
    (folder / "stopped.json").write_text('{"step": 10}')
    assert state_of(folder) == "stopped early"
    with FileLock(folder / ".driver.lock"):
        assert state_of(folder) == "running"
        assert states.driver_process(folder, lock_holders()) == os.getpid()
        assert run_state(folder, lock_holders(), False, 0.0, math.nan) == "waiting"
        (folder / "failure.json").write_text("{}")
        assert state_of(folder) == "failed"
    for name in ("failure.json", "stopped.json"):
        (folder / name).unlink()
    assert state_of(folder) == "stopped"
    (folder / "summary.json").write_text("{}")
    assert state_of(folder) == "finished"


def test_a_run_of_another_machine_is_running_while_it_writes(
    fake_run: MakeFakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_run("live", total_steps=40, num_steps=10).path
    for is_elsewhere, silent, pace, state in (
        (True, 10.0, 1.0, "running"),
        (True, 100.0, 1.0, "stopped"),
        (True, 100.0, 30.0, "running"),
        (False, 10.0, 1.0, "stopped"),
    ):
        monkeypatch.setattr(states, "_may_be_elsewhere", lambda _, answer=is_elsewhere: answer)
        assert state_of(folder, silent, pace) == state


def test_trials_say_what_they_try_and_that_they_were_stopped_early(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    (tmp_path / "small-tune").mkdir()
    changes = {
        "training.learning_rate": 1.23456e-4,
        "mixing.shares": {"math": 0.25, "law": 0.75},
        "mixing.type": "fixed",
    }
    for name in ("small-tune/trial-a", "small-tune/trial-b"):
        trial = fake_run(name, total_steps=40, num_steps=10).path
        (trial / "stopped.json").write_text('{"step": 10}')
    (trial / "trial.json").write_text(json.dumps({"point": {}, "changes": changes}))
    (trial.with_name("trial-a") / "trial.json").write_text('["of another making"]')
    glances = {glance.name: glance for glance in Catalog(tmp_path).glances()}
    assert {(glance.group, glance.state) for glance in glances.values()} == {("small-tune", "stopped early")}
    tried = [glances[f"small-tune/trial-{letter}"].tries for letter in "ab"]
    assert tried == ["", "learning_rate 0.0001235, shares math 25.0%, law 75.0%, type fixed"]
