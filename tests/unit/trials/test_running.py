"""What of trials can be known without a cluster: how many fit, what is refused, what a person reads."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.config.run import ClusterConfig, RunConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.running import TrialsFailedError, num_side_by_side, run_trials
from orchestrator.views.runs import TrialsView
from tests.unit.conftest import make_fake_run_in


@pytest.mark.parametrize(
    ("nodes", "clusters", "expected"),
    [
        ([{"CPU": 8.0}], [ClusterConfig()], 8),
        ([{"CPU": 8.0}], [ClusterConfig(num_workers=3)], 2),
        ([{"CPU": 8.0}], [ClusterConfig(), ClusterConfig(num_workers=3)], 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], [ClusterConfig(cpus_per_worker=2)], 2),
        ([{"CPU": 64.0, "GPU": 8.0}], [ClusterConfig(num_workers=2, gpus_per_worker=1)], 4),
        ([{"CPU": 64.0, "GPU": 1.0}], [ClusterConfig(gpus_per_worker=0.5)], 2),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 4.0}], [ClusterConfig(gpus_per_worker=1, cpus_per_worker=2)], 2),
        ([{"CPU": 2.0}], [ClusterConfig(num_workers=3)], 1),
    ],
)
def test_as_many_run_side_by_side_as_have_room(
    nodes: list[dict[str, float]], clusters: list[ClusterConfig], expected: int
) -> None:
    assert num_side_by_side(nodes, clusters) == expected


def config_in(folder: Path, name: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "output_dir": folder,
            "model": {"path": "owner/name"},
            "domains": {"math": {"train": "math.jsonl"}},
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 10, "global_batch_size": 8},
        }
    )


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same folder"):
        run_trials([config_in(tmp_path, "a"), config_in(tmp_path, "b"), config_in(tmp_path, "a")], Console())
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_found_and_a_folder_in_use_is_a_failure_by_name(tmp_path: Path) -> None:
    done, held = config_in(tmp_path, "done"), config_in(tmp_path, "held")
    with claim_folder(done):
        (done.folder / "summary.json").write_text("{}")
    output = io.StringIO()
    with claim_folder(held), pytest.raises(TrialsFailedError) as caught:
        run_trials([done, held], Console(file=output))
    assert output.getvalue() == "1 of 2 runs are done already\n"
    assert set(caught.value.reasons) == {"held"} and "another process" in caught.value.reasons["held"]
    assert "1 of 2 runs failed" in str(caught.value)


def test_a_finished_run_of_another_configuration_is_no_result(tmp_path: Path) -> None:
    config = config_in(tmp_path, "done")
    with claim_folder(config):
        (config.folder / "summary.json").write_text("{}")
    with pytest.raises(TrialsFailedError, match=r"seed: was 0, is 7"):
        run_trials([config.model_copy(update={"seed": 7})], Console())


def test_the_view_prints_a_line_for_each_run_that_ends(tmp_path: Path) -> None:
    good = make_fake_run_in(tmp_path)("good", total_steps=40, num_steps=20)
    bad = make_fake_run_in(tmp_path)("bad", total_steps=40, num_steps=0)
    output = io.StringIO()
    with TrialsView(lambda: {good.path: 40, bad.path: 40}, 2, Console(file=output, width=60)):
        good.write_steps(21, 40)
        good.write_summary()
        (bad.path / "failure.json").write_text(json.dumps({"message": "step 2: the \x1b[31mloss is not finite"}))
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    mean = sum(good.losses[40].values()) / 5
    assert lines[0] == f"[1/2] good: mean loss {mean:.3f}, 1 min 04 s of training"
    assert lines[1] == "[2/2] bad: failed: step 2: the \\x1b[31mloss is not finite"
