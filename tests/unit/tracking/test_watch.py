"""A tracker that fails or hangs: told once, dropped, and the run goes on. Trackers in a configuration."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.run import RunConfig
from orchestrator.config.tracking import MLflowConfig, TensorBoardConfig, WandbConfig
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lock import bound_settings
from orchestrator.tracking import watch
from orchestrator.tracking.base import LastStep, RunIdentity, StepRecord
from orchestrator.tracking.watch import RunFollower, TrackedRun, Watch
from tests.unit.conftest import MakeFakeRun


class Fragile:
    """A tracker that breaks, or hangs, from a step on."""

    def __init__(self, breaks_at: int, hang: threading.Event | None = None) -> None:
        self.last_step, self.breaks_at, self.hang = -1, breaks_at, hang
        self.outcome: bool | None = None
        self.num_calls = 0

    def log(self, records: Sequence[StepRecord]) -> None:
        self.num_calls += 1
        if records[-1].step >= self.breaks_at:
            if self.hang is None:
                raise ConnectionError("no route to host\nand more of it")
            self.hang.wait()
        self.last_step = records[-1].step

    def close(self, is_finished: bool) -> None:
        self.outcome = is_finished


def events(folder: Path) -> list[dict[str, object]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_tracker_that_fails_is_told_once_and_dropped(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=10, every=10)
    tracker = Fragile(breaks_at=15)
    follower = RunFollower(run.path, "r", "mlflow", lambda identity: tracker)
    for first in (11, 21, 31):
        follower.look()
        run.write_steps(first, first + 9)
    follower.look()
    follower.end()
    (event,) = events(run.path)
    assert event["kind"] == "tracking"
    assert str(event["message"]).startswith("mlflow: ConnectionError: no route to host; the run continues without it")
    assert tracker.num_calls == 2 and tracker.outcome is None


def test_a_tracker_that_cannot_be_opened_is_told_once(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, num_steps=10, every=10)

    def no_login(identity: RunIdentity) -> Fragile:
        raise RuntimeError("not logged in")

    follower = RunFollower(run.path, "r", "wandb", no_login)
    for _ in range(4):
        follower.look()
    assert [event["message"] for event in events(run.path)] == [
        "wandb: RuntimeError: not logged in; the run continues without it (see raymix.log)"
    ]


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_outcome_is_whether_there_is_a_result(fake_run: MakeFakeRun, is_finished: bool) -> None:
    run = fake_run(total_steps=20, num_steps=None if is_finished else 15, every=10)
    tracker = Fragile(breaks_at=99)
    follower = RunFollower(run.path, "r", "mlflow", lambda identity: tracker)
    follower.look()
    follower.end()
    assert tracker.outcome is is_finished
    assert tracker.last_step == (20 if is_finished else 15)


def test_a_tracker_that_hangs_does_not_hold_up_the_end(fake_run: MakeFakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run(total_steps=20, every=10)
    hang = threading.Event()
    monkeypatch.setattr(watch, "CLOSING_SECONDS", 0.2)
    follower = RunFollower(run.path, "r", "mlflow", lambda identity: Fragile(breaks_at=5, hang=hang))
    watching = Watch("mlflow", [follower])
    watching.start()
    began = time.monotonic()
    watch._end([watching], [TrackedRun(run.path, "r", (MLflowConfig(),))])
    assert time.monotonic() - began < 5
    hang.set()
    watching.join()
    assert [event["message"] for event in events(run.path)] == ["mlflow: did not accept the last values within 0 s"]
    assert RunFolder(run.path).refresh()


def test_how_far_a_tracker_is_counts_for_its_place_only(tmp_path: Path) -> None:
    LastStep(tmp_path / "last.json", "here").write(7)
    assert LastStep(tmp_path / "last.json", "here").read() == 7
    assert LastStep(tmp_path / "last.json", "there").read() == -1
    (tmp_path / "last.json").write_text('{"place": "he')
    assert LastStep(tmp_path / "last.json", "here").read() == -1


def load(folder: Path, tracking: str, check_files: bool = False) -> RunConfig:
    path = folder / "config.yaml"
    path.write_text(
        "name: n\nmodel: {path: someone/model}\ndomains: {math: {train: [m.jsonl]}}\nmixing: {type: uniform}\n"
        "training: {max_steps: 1, global_batch_size: 1, micro_batch_size: 1, learning_rate: 1.0e-3}\n"
        f"tracking: {tracking}\n"
    )
    return load_config(path, check_files=check_files)


def test_trackers_by_name_or_with_settings(tmp_path: Path) -> None:
    assert load(tmp_path, "[tensorboard, {type: wandb, mode: offline}, mlflow]").tracking == [
        TensorBoardConfig(),
        WandbConfig(mode="offline"),
        MLflowConfig(),
    ]


def test_a_run_may_go_on_with_other_trackers(tmp_path: Path) -> None:
    assert bound_settings(load(tmp_path, "[tensorboard]")) == bound_settings(load(tmp_path, "[wandb]"))


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ("[tensorbord]", "tracking[0].type: 'tensorbord' is not known; did you mean 'tensorboard'?"),
        ("[wandb, {type: wandb, mode: offline}]", "tracking: wandb is given twice; keep one"),
        ("[{type: wandb, projekt: x}]", "tracking[0].projekt: unknown key; did you mean 'project'?"),
    ],
)
def test_what_is_wrong_with_trackers(tmp_path: Path, tracking: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, tracking)
    assert str(caught.value).endswith(message)


def test_a_package_that_is_missing_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[tensorboard, wandb]", check_files=True)
    assert str(caught.value).endswith(
        "config.yaml:6: tracking[1]: wandb is not installed; run `pip install 'raymix[wandb]'`, or leave wandb out"
    )
