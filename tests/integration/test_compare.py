"""`raymix compare` as a user runs it: variants that fail before or in training; stopped by Ctrl-C and started again."""

import json
import os
import signal
from pathlib import Path

import pytest

from orchestrator.sweeps.compare.results import MEAN, Comparison
from tests.runs import num_lines, raymix, read_lines, start, wait_for, write_run

LABELS = "uniform,versatune,too-short,diverging"
NUM_STEPS = 40
RUNS = ["uniform-seed0", "versatune-seed0"]


def write_comparison(folder: Path, num_steps: int) -> Path:
    return write_run(
        folder,
        cluster__num_workers=1,
        training__max_steps=num_steps,
        training__checkpoint_every=num_steps,
        evaluation__every=num_steps // 4,
        compare={
            "target": "law",
            "variants": {
                "too-short": {"data.max_length": 9},
                "diverging": {"training.learning_rate": 1e12},
            },
        },
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that is done, but for the variants that fail."""
    config = write_comparison(tmp_path_factory.mktemp("compare"), NUM_STEPS)
    folder = config.parent / "runs" / "small-compare"
    done = raymix("compare", config, "--algorithms", LABELS, "--seeds", "1")
    assert done.returncode == 1, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.mark.soak
def test_stopped_runs_are_resumed_and_all_others_are_done(tmp_path: Path) -> None:
    num_steps = 320  # long enough for Ctrl-C to arrive
    config = write_comparison(tmp_path, num_steps)
    folder = config.parent / "runs" / "small-compare"
    command = ("compare", config, "--algorithms", "uniform,versatune", "--seeds", "1")
    process = start(*command)
    runs = [folder / name for name in RUNS]
    wait_for(process, lambda: any(num_lines(run / "metrics.jsonl") >= 2 for run in runs))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    under_way = [run for run in runs if num_lines(run / "metrics.jsonl")]
    assert under_way
    for run in under_way:  # though no checkpoint was due for a long time
        step = read_lines(run / "metrics.jsonl")[-1]["step"]
        assert step < num_steps and [path.name for path in run.glob("checkpoints/*")] == [f"step-{step:08d}"]
        assert not (run / "summary.json").exists() and not (run / "failure.json").exists()
    done = raymix(*command)
    assert done.returncode == 0, done.stderr
    for run in runs:
        assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, num_steps + 1))
        assert (run / "summary.json").exists()
        begins = [line["message"] for line in read_lines(run / "events.jsonl") if line["kind"] == "attempt"]
        assert ("resumes after step" in begins[-1]) == (run in under_way)


def test_only_numbers_are_kept(compared: Path) -> None:
    for name in RUNS:
        left = {path.name for path in (compared / name).iterdir()}
        assert not left & {"model", "best", "checkpoints"}
    assert not [path for path in compared.iterdir() if path.name.startswith(".ray-tune")]


def test_the_variants_that_failed_are_named_with_their_reasons(compared: Path) -> None:
    error = (compared / "stderr.txt").read_text()
    assert "2 of 4 runs failed" in error and "Traceback" not in error
    (too_short,) = (line for line in error.splitlines() if "too-short-seed0: " in line)
    (diverging,) = (line for line in error.splitlines() if "diverging-seed0: " in line)
    assert "no training examples" in too_short
    assert "step 2: the training loss" in diverging and "is not finite; nothing was updated" in diverging


def test_a_training_that_diverges_ends_before_the_update_and_leaves_no_result(compared: Path) -> None:
    run = compared / "diverging-seed0"
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1]
    assert not (run / "summary.json").exists() and not list(run.glob("checkpoints/step-*"))
    assert len([line for line in read_lines(run / "events.jsonl") if line["kind"] == "attempt"]) == 1


def test_the_result_is_what_the_runs_say(compared: Path) -> None:
    comparison = Comparison.model_validate_json((compared / "compare.json").read_bytes())
    assert set(comparison.failed) == {"too-short-seed0", "diverging-seed0"}
    ends = {name: json.loads((compared / name / "summary.json").read_text())["mean_loss_nats"]["end"] for name in RUNS}
    difference = comparison.variants["versatune"].differences[MEAN]
    assert difference.mean == pytest.approx(ends["versatune-seed0"] - ends["uniform-seed0"])
    assert difference.num_seeds == 1
    printed = (compared / "stdout.txt").read_text()
    assert f"{comparison.variants['uniform'].means[MEAN].mean:.3f}" in printed
    assert "Traceback" not in printed and "ray::" not in printed
    assert (compared / "compare.html").stat().st_size > 100_000
