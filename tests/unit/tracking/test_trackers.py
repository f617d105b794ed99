"""Each tracker holds a run that was killed and gone on with as its files tell it: every value once, none twice."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from orchestrator.config.tracking import MLflowConfig, TensorBoardConfig, TrackerConfig, WandbConfig
from orchestrator.tracking.base import RunRecords
from orchestrator.tracking.watch import RunFollower, open_tracker
from tests.unit.conftest import BEGUN_AT, FakeRun, MakeFakeRun
from tests.unit.tracking.stores import Series, read_mlflow, read_tensorboard, read_times, read_wandb
from tests.unit.tracking.test_records import cut_back

RUN_ID = "five-domains-0123456789ab"


def follower(run: FakeRun, settings: TrackerConfig) -> RunFollower:
    return RunFollower(run.path, RUN_ID, settings.type, partial(open_tracker, settings))


def track_with_a_kill(run: FakeRun, settings: TrackerConfig) -> Series:
    """The driver dies at step 27 and the run goes on from step 20; what the tracker is to hold in the end."""
    killed = follower(run, settings)
    killed.look()
    killed.look()
    assert killed._tracker is not None
    if isinstance(settings, WandbConfig):
        killed._tracker.close(False)  # its process writes down what it was handed, though the driver is dead
    before = as_the_files_tell(run)
    cut_back(run, 20)
    second = follower(run, settings)
    second.look()
    for first in range(21, 41, 5):
        run.write_steps(first, first + 4)
        second.look()
    run.write_summary()
    second.look()
    second.end()
    after = as_the_files_tell(run)
    # The made-up run's steps come out otherwise when they are repeated; they stay as they were first told.
    return {key: before.get(key, []) + [point for point in after[key] if point[0] > 26] for key in after}


def as_the_files_tell(run: FakeRun) -> Series:
    records = RunRecords(run.path)
    records.refresh()
    records.refresh()
    series: Series = defaultdict(list)
    for record in records.after(-1):
        for key, value in record.values.items():
            series[key].append((record.step, value))
    return dict(series)


def assert_same(series: Series, expected: Series) -> None:
    assert series.keys() == expected.keys()
    for key, points in expected.items():
        assert series[key] == [(step, pytest.approx(value, rel=1e-5)) for step, value in points], key


@pytest.mark.parametrize("settings", [TensorBoardConfig(), MLflowConfig(), WandbConfig()], ids=lambda each: each.type)
def test_steps_have_their_own_time_of_day_and_the_last_is_there(
    run: FakeRun, settings: TrackerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was stopped, and that was looked at once only."""
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("MLFLOW_DISABLE_TELEMETRY", "1"),
    ):
        monkeypatch.setenv(name, value)
    watcher = follower(run, settings)
    watcher.look()
    watcher.end()
    times = read_times(run.path, settings, RUN_ID)
    assert times == pytest.approx({step: BEGUN_AT + 1.6 * step for step in range(1, 28)}, abs=0.002)


@pytest.fixture
def run(fake_run: MakeFakeRun) -> FakeRun:
    return fake_run(total_steps=40, num_steps=27, every=10)


def test_tensorboard(run: FakeRun) -> None:
    expected = track_with_a_kill(run, TensorBoardConfig())
    assert_same(read_tensorboard(run.path / "tensorboard"), expected)


def test_tensorboard_in_a_folder_of_its_own_purges_what_was_not_noted(run: FakeRun, tmp_path: Path) -> None:
    settings = TensorBoardConfig(folder=str(tmp_path / "events"))
    folder = tmp_path / "events" / run.path.name
    first = follower(run, settings)
    first.look()
    first.look()
    noted = folder / "last_step.json"
    noted.write_text(noted.read_text().replace("26", "15"))  # killed before it noted the last steps
    expected = track_with_a_kill(run, settings)
    assert_same(read_tensorboard(folder), expected)


def test_mlflow(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    expected = track_with_a_kill(run, MLflowConfig())
    held, series = read_mlflow(f"sqlite:///{run.path.parent / 'mlflow.db'}", RUN_ID)
    assert_same(series, expected)
    assert (held.info.run_name, held.info.status) == (run.path.name, "FINISHED")
    assert held.data.params["mixing.type"] == "versatune" and held.data.params["training.max_steps"] == "40"


def test_wandb_offline(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    expected = track_with_a_kill(run, WandbConfig(project="mixtures"))
    runs, series = read_wandb(run.path / "wandb")
    assert_same(series, expected)
    assert {(each.run_id, each.display_name, each.project) for each in runs} == {(RUN_ID, run.path.name, "mixtures")}
