"""The graph of trainings: each once, in order, whoever else trains it, and whatever becomes of the others.

The trainings are pretended; folders, locks, data and plans are real.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import is_finished
from orchestrator.runs.lock import claim_folder
from orchestrator.runs.records import RunSummary
from orchestrator.sweeps.run import RunNode, stage_nodes, train_runs
from orchestrator.training import plan
from orchestrator.training.driver import ReadyRun
from tests.crews import OneByOne, WorkHere
from tests.unit.sweeps.pretended import DMT, MIXED, config_in, pretend, write_data

MakeConfig = Callable[..., SweepConfig]


@pytest.fixture
def make_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    monkeypatch.setattr(plan, "find_start", lambda config: None)  # a pretended training leaves no checkpoint
    write_data(tmp_path)
    return lambda name, **more: config_in(tmp_path, name, **more)


def names(folders: list[str]) -> list[str]:
    return [folder.rsplit("-", 1)[0] for folder in folders]


def failing(name: str) -> Callable[[ReadyRun], None]:
    def train(run: ReadyRun) -> None:
        if run.plan.folder.name.startswith(name):
            raise RuntimeError("too hot")
        pretend(run)

    return train


def test_what_others_start_from_is_trained_first_and_once_and_keeps_its_model(make_config: MakeConfig) -> None:
    configs = [make_config("single-a"), make_config("mixed", stages=MIXED), make_config("dmt", stages=DMT)]
    crew = OneByOne(pretend)
    assert train_runs(configs, WorkHere(), crew, keeps_models=False) == {}
    assert sorted(names(crew.trained)) == ["general", "general-replay", "single", "specialised"]
    trained = names(crew.trained)
    assert trained.index("specialised") < min(trained.index("general"), trained.index("general-replay"))
    assert {name.rsplit("-", 1)[0] for name, is_kept in crew.kept_models.items() if is_kept} == {"specialised"}
    stages = json.loads((configs[2].folder / "stages.json").read_text())
    assert [stage["name"] for stage in stages] == ["specialised", "general-replay"]
    summary = RunSummary.model_validate_json((configs[2].folder / "summary.json").read_bytes())
    assert summary.domains["math"].loss_nats_start == 2.0 and summary.domains["math"].loss_nats_end == 1.0


def test_a_stage_waits_for_the_one_that_it_starts_from_though_there_is_room(make_config: MakeConfig) -> None:
    config = make_config("mixed", stages=MIXED)

    def look_back(run: ReadyRun) -> None:
        if run.plan.folder.name.startswith("general"):
            (before,) = config.folder.parent.glob("stages/specialised-*")
            assert is_finished(before)
        pretend(run)

    crew = OneByOne(look_back, room=3)
    assert train_runs([config, make_config("single-a")], WorkHere(), crew) == {}
    assert sorted(names(crew.trained)) == ["general", "single", "specialised"]


def test_what_is_done_is_not_done_again(make_config: MakeConfig) -> None:
    configs = [make_config("single-a"), make_config("dmt", stages=DMT)]
    train_runs(configs, WorkHere(), OneByOne(pretend))
    again, work = OneByOne(pretend), WorkHere()
    assert train_runs(configs, work, again) == {} and again.trained == []
    assert "1 of 1 runs are done already" in work.output.export_text()


def test_a_plan_fails_with_its_stage_and_the_others_go_on(make_config: MakeConfig) -> None:
    configs = [make_config("single-a"), make_config("mixed", stages=MIXED), make_config("dmt", stages=DMT)]
    failures = train_runs(configs, WorkHere(), OneByOne(failing("general-replay")))
    assert failures == {"dmt": "stage general-replay: too hot"}
    assert is_finished(configs[1].folder) and not is_finished(configs[2].folder)
    again = OneByOne(pretend)
    assert train_runs(configs, WorkHere(), again) == {} and names(again.trained) == ["general-replay"]


def test_nothing_is_started_from_a_training_that_failed(make_config: MakeConfig) -> None:
    crew = OneByOne(failing("specialised"))
    configs = [make_config("mixed", stages=MIXED), make_config("dmt", stages=DMT)]
    failures = train_runs(configs, WorkHere(), crew)
    assert failures == {"mixed": "stage specialised: too hot", "dmt": "stage specialised: too hot"}
    assert names(crew.trained) == ["specialised"]
    (folder,) = configs[0].folder.parent.glob("stages/specialised-*")
    assert json.loads((folder / "failure.json").read_text()) == {"message": "too hot"}


def test_a_run_that_cannot_be_prepared_fails_alone(make_config: MakeConfig) -> None:
    broken = make_config("broken", model={"path": "/nowhere/at/all"})
    good = make_config("good")
    failures = train_runs([broken, good], WorkHere(), OneByOne(pretend))
    assert set(failures) == {"broken"} and "no such folder" in failures["broken"] and is_finished(good.folder)


def test_two_runs_in_one_folder_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="same folder"):
        train_runs([make_config("a"), make_config("b"), make_config("a")], WorkHere(), OneByOne(pretend))


def test_a_finished_run_of_another_configuration_is_no_result(make_config: MakeConfig) -> None:
    train_runs([make_config("done")], WorkHere(), OneByOne(pretend))
    (make_config("done").folder / "summary.json").unlink()
    (make_config("done").folder / "metrics.jsonl").write_text('{"step": 1}\n')
    failures = train_runs([make_config("done", seed=7)], WorkHere(), OneByOne(pretend))
    assert "seed: was 0, is 7" in failures["done"]


@pytest.mark.parametrize("kind", ["run", "stage"])
def test_what_another_process_trains_is_waited_for(make_config: MakeConfig, kind: str) -> None:
    """It is held by its lock, as by another process, and its result appears."""
    config = make_config("a") if kind == "run" else make_config("a", stages=MIXED)
    work = WorkHere()
    node: Any = RunNode(config) if kind == "run" else stage_nodes(config, work)[0]
    begun = threading.Event()

    def elsewhere() -> None:
        with node.hold() as run_id:
            begun.set()
            time.sleep(1.5)
            pretend(ready := node.resolve(run_id, WorkHere()))
            node.finish(ready, work)

    other = threading.Thread(target=elsewhere)
    other.start()
    begun.wait()
    crew = OneByOne(pretend)
    assert train_runs([config, make_config("b")], work, crew) == {}
    other.join()
    assert is_finished(config.folder)
    assert not any(folder == node.find_folder().name for folder in crew.trained)
    assert f"another process is training {node.title}" in " ".join(work.output.export_text().split())


def test_a_plan_whose_folder_another_process_holds_is_finished_after_it(make_config: MakeConfig) -> None:
    config = make_config("plan", stages=MIXED)
    with claim_folder(config):
        threading.Timer(0.1, lambda: None).start()
        result: dict[str, str] = {}
        thread = threading.Thread(target=lambda: result.update(train_runs([config], WorkHere(), OneByOne(pretend))))
        thread.start()
        while not list(config.folder.parent.glob("stages/general-*/summary.json")):
            time.sleep(0.05)
        assert not is_finished(config.folder)
    thread.join()
    assert result == {} and is_finished(config.folder)


def test_an_interruption_leaves_what_is_done_and_the_same_call_does_the_rest(make_config: MakeConfig) -> None:
    configs = [make_config("dmt", stages=DMT), make_config("single-a")]

    def interrupted(run: ReadyRun) -> None:
        if run.plan.folder.name.startswith("general-replay"):
            raise KeyboardInterrupt
        pretend(run)

    with pytest.raises(KeyboardInterrupt):
        train_runs(configs, WorkHere(), OneByOne(interrupted))
    again = OneByOne(pretend)
    assert train_runs(configs, WorkHere(), again) == {}
    assert "specialised" not in names(again.trained) and "general-replay" in names(again.trained)
    assert all(is_finished(config.folder) for config in configs)
