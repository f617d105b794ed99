"""A trial as Ray Tune sees it, its training replaced by one that only writes what a run writes."""

import json
import time
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from orchestrator.config.run import RunConfig
from orchestrator.mixing import Measured
from orchestrator.searches.space import SearchSpace
from orchestrator.sweeps.tune import sampling
from orchestrator.sweeps.tune.sampling import SearchTrial
from orchestrator.sweeps.tune.trials import Trials, best_of, collect, write_best
from tests.unit.sweeps.tune.searches import DOMAINS, config_with, write_evaluation

SEARCH = {"type": "random", "space": {"mixing.sigma": {"uniform": [0.1, 1.0]}}}


def trials_in(folder: Path, **changes: Any) -> Trials:
    config = config_with(SEARCH, output_dir=str(folder))
    space = SearchSpace(config.search.space, DOMAINS)  # type: ignore[union-attr]
    return Trials(base=config, space=space, stores={}, metric="mean", target=None, **changes)


class Training:
    """Stands for the training: an evaluation every 4 steps, whose loss is sigma + 12 / step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.last_step = 12
        self.may_end = Event()
        self.may_end.set()
        self.failure: Exception | None = None
        monkeypatch.setattr(sampling, "resolve_run", self._resolve_run)
        monkeypatch.setattr(sampling, "train", self._train)
        monkeypatch.setattr(sampling, "write_summary", lambda folder, rows: (folder / "summary.json").write_text("{}"))

    def _resolve_run(self, run: RunConfig, run_id: str, *rest: object) -> Any:
        ready = SimpleNamespace(
            run=run, num_bad_rows={}, cluster=run.cluster, tracked=SimpleNamespace(folder=run.folder, trackers=())
        )
        ready.without_models = lambda: ready
        return ready

    def _train(self, ready: Any, in_this_process: bool, stopping: Event) -> None:
        run: RunConfig = ready.run
        self.started.append(run.name)
        assert in_this_process
        if self.failure is not None:
            raise self.failure
        (run.folder / "feedback").mkdir()
        (run.folder / "checkpoints").mkdir()
        for step in range(0, self.last_step + 1, 4):
            if stopping.wait(0.01):
                self.may_end.wait(10)
                raise KeyboardInterrupt
            write_evaluation(run.folder, step, run.mixing.sigma + 12 / max(step, 1))  # type: ignore[union-attr]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(monkeypatch)


def start(trials: Trials, sigma: float) -> SearchTrial:
    tuned = SearchTrial.__new__(SearchTrial)  # without what Tune sets up around it
    tuned.setup({"point": {"mixing.sigma": sigma}}, trials)
    return tuned


def steps_of(tuned: SearchTrial) -> list[dict[str, Any]]:
    results = [tuned.step()]
    while not results[-1].get("done"):
        results.append(tuned.step())
    return results


def test_every_evaluation_but_the_base_models_is_a_result_and_the_last_comes_again(
    tmp_path: Path, training: Training
) -> None:
    results = steps_of(start(trials_in(tmp_path), 0.5))
    assert [result["step"] for result in results] == [4, 8, 12, 12]
    assert [result["score"] for result in results] == pytest.approx([3.5, 2.0, 1.5, 1.5])
    assert ["done" in result for result in results] == [False, False, False, True]


def test_a_trial_that_was_done_reports_the_same_again_and_trains_nothing(tmp_path: Path, training: Training) -> None:
    first = steps_of(start(trials_in(tmp_path), 0.5))
    assert steps_of(start(trials_in(tmp_path), 0.5)) == first
    assert len(training.started) == 1
    assert steps_of(start(trials_in(tmp_path), 0.6)) != first
    assert len(training.started) == 2


def test_a_trial_that_ends_early_leaves_a_note_and_is_never_gone_on_with(tmp_path: Path, training: Training) -> None:
    training.last_step = 4000
    trials = trials_in(tmp_path, ends_early=True)
    tuned = start(trials, 0.5)
    assert tuned.step()["step"] == 4
    tuned.cleanup()
    (folder,) = tmp_path.glob("trial-*")
    assert json.loads((folder / "stopped.json").read_text())["step"] == 0  # no metrics.jsonl here
    assert not (folder / "checkpoints").exists() and not (folder / "summary.json").exists()
    again = steps_of(start(trials, 0.5))
    assert again[0]["step"] == 4 and len(training.started) == 1
    (record,) = collect([folder], trials)
    assert record.state == "ended early" and best_of([record]) is None


def test_the_note_is_there_before_the_training_has_ended(tmp_path: Path, training: Training) -> None:
    training.last_step = 4000
    training.may_end.clear()
    tuned = start(trials_in(tmp_path, ends_early=True), 0.5)
    tuned.step()
    ending = Thread(target=tuned.cleanup)
    ending.start()
    until = time.monotonic() + 5
    while not list(tmp_path.glob("trial-*/stopped.json")):
        assert time.monotonic() < until, "whoever kills the trial now takes it for an unfinished one"
        time.sleep(0.01)
    assert ending.is_alive()
    training.may_end.set()
    ending.join()


def test_without_early_ends_a_stopped_trial_is_only_unfinished(tmp_path: Path, training: Training) -> None:
    training.last_step = 4000
    tuned = start(trials_in(tmp_path), 0.5)
    tuned.step()
    tuned.cleanup()
    assert not list(tmp_path.glob("trial-*/stopped.json"))


def test_a_trial_that_fails_is_the_worst_and_says_why(tmp_path: Path, training: Training) -> None:
    training.failure = ValueError("step 2: the loss is not finite")
    trials = trials_in(tmp_path)
    (result,) = steps_of(start(trials, 0.5))
    assert result == {"step": 0, "score": float("inf"), "done": True}
    training.failure = None
    (folder,) = tmp_path.glob("trial-*")
    (record,) = collect([folder], trials)
    assert (record.state, record.reason) == ("failed", "step 2: the loss is not finite")
    assert steps_of(start(trials, 0.5))[-1]["score"] == pytest.approx(1.5)  # the same command tries it again
    assert collect([folder], trials)[0].state == "finished" and not (folder / "failure.json").exists()


def test_values_that_break_the_runs_rules_are_the_worst(tmp_path: Path, training: Training) -> None:
    (result,) = steps_of(start(trials_in(tmp_path), -3.0))
    assert result["score"] == float("inf") and not training.started


def test_a_folder_in_use_is_waited_for(tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = trials_in(tmp_path)
    run = trials.run_of({"mixing.sigma": 0.5})
    with sampling.claim_folder(run):
        tuned = start(trials, 0.5)
        time.sleep(0.1)
        assert not training.started
    assert steps_of(tuned)[-1]["score"] == pytest.approx(1.5)


def test_points_tried_before_are_known_oldest_first_and_only_those_of_this_search(
    tmp_path: Path, training: Training
) -> None:
    trials = trials_in(tmp_path)
    sigmas = [0.9, 0.2, 0.5, 0.8, 0.4, 0.7]
    for sigma in sigmas:
        steps_of(start(trials, sigma))
        time.sleep(0.02)
    assert [point["mixing.sigma"] for point in trials.known_points()] == sigmas
    narrower = SearchSpace(
        config_with({**SEARCH, "space": {"mixing.sigma": {"uniform": [0.1, 0.6]}}}).search.space,  # type: ignore[union-attr]
        DOMAINS,
    )
    other = Trials(**(vars(trials) | {"space": narrower}))
    assert [point["mixing.sigma"] for point in other.known_points()] == [0.2, 0.5, 0.4]
    longer = trials.base.model_copy(update={"training": trials.base.training.model_copy(update={"max_steps": 200})})
    assert Trials(**(vars(trials) | {"base": longer})).known_points() == []


def test_the_best_trial_is_a_configuration_with_the_same_result(tmp_path: Path, training: Training) -> None:
    trials = trials_in(tmp_path)
    for sigma in (0.9, 0.2, 0.5):
        steps_of(start(trials, sigma))
    records = collect(sorted(tmp_path.glob("trial-*")), trials)
    best = best_of(records)
    assert best is not None and best.changes == {"mixing.sigma": 0.2} and best.score == pytest.approx(1.2)
    write_best(tmp_path / "best.yaml", trials.run_with(best.changes), "The best of 3.")
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# The best of 3.\nname: trial-") and "search" not in text
    again = RunConfig.model_validate(yaml.safe_load(text))
    assert again == trials.run_with(best.changes)


def test_numbers_that_are_measured_once_stand_in_every_trial(tmp_path: Path) -> None:
    config = config_with(SEARCH, output_dir=str(tmp_path), mixing={"type": "versatune", "initial": "detected"})
    references, shares = dict.fromkeys(DOMAINS, 1.5), {"math": 0.5, "code": 0.3, "law": 0.2}
    space = SearchSpace(config.search.space, DOMAINS)  # type: ignore[union-attr]
    trials = Trials(config, space, {}, "mean", None, Measured({"detected": shares}, {"computed": references}))
    mixing = trials.run_of({"mixing.sigma": 0.5}).mixing
    assert (mixing.reference, mixing.initial, mixing.sigma) == (references, shares, 0.5)  # type: ignore[union-attr]


def test_files_are_found_from_where_the_search_was_started(tmp_path: Path) -> None:
    mixing = {"type": "versatune", "initial": "mix.json", "reference": "/there/reference.json"}
    config = config_with(SEARCH, output_dir=str(tmp_path), mixing=mixing)
    space = SearchSpace(config.search.space, DOMAINS)  # type: ignore[union-attr]
    trials = Trials(config, space, {}, "mean", None, here=Path("/home/ada"))
    found = trials.run_of({"mixing.sigma": 0.5}).mixing
    assert (found.initial, found.reference) == (Path("/home/ada/mix.json"), Path("/there/reference.json"))  # type: ignore[union-attr]
