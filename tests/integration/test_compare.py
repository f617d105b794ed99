"""`raymix compare` as a user runs it: killed half-way, started again, and with a variant that cannot be run."""

import json
from pathlib import Path

import pytest

from orchestrator.compare.results import MEAN, Comparison
from tests.runs import kill_group, raymix, read_lines, start, wait_for, write_run

LABELS = "uniform,versatune,too-large"
RUNS = [f"{label}-seed{seed}" for label in ("uniform", "versatune") for seed in (0, 1)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that was killed when the first run had ended, and done by the same command."""
    config = write_run(
        tmp_path_factory.mktemp("compare"),
        cluster__num_workers=1,
        training__max_steps=8,
        compare={"target": "law", "variants": {"too-large": {"cluster.gpus_per_worker": 64}}},
    )
    folder = config.parent / "runs" / "small-compare"
    command = ("compare", config, "--algorithms", LABELS, "--seeds", "2")
    process = start(*command)
    wait_for(process, lambda: any(folder.glob("*/summary.json")))
    kill_group(process)
    finished = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    assert 0 < len(finished) < len(RUNS)
    before = {name: (folder / name / "events.jsonl").read_bytes() for name in finished}
    done = raymix(*command)
    assert done.returncode == 1, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    (folder / "finished.json").write_text(json.dumps(finished))
    for name, events in before.items():
        assert (folder / name / "events.jsonl").read_bytes() == events
    return folder


def test_finished_runs_are_not_run_again_and_all_others_are_done(compared: Path) -> None:
    finished = json.loads((compared / "finished.json").read_text())
    assert f"{len(finished)} of 6 runs are done already" in (compared / "stdout.txt").read_text()
    for name in RUNS:
        assert [line["step"] for line in read_lines(compared / name / "metrics.jsonl")] == list(range(1, 9))
        assert (compared / name / "summary.json").exists()


def test_only_numbers_are_kept(compared: Path) -> None:
    for name in RUNS:
        left = {path.name for path in (compared / name).iterdir()}
        assert not left & {"model", "best", "checkpoints"}
    assert not [path for path in compared.iterdir() if path.name.startswith(".ray-tune")]


def test_the_variant_that_failed_is_named_with_its_reason(compared: Path) -> None:
    error = (compared / "stderr.txt").read_text()
    assert "2 of 6 runs failed" in error
    assert "too-large-seed0" in error and "64 GPU" in error
    assert "Traceback" not in error


def test_the_result_is_what_the_runs_say(compared: Path) -> None:
    comparison = Comparison.model_validate_json((compared / "compare.json").read_bytes())
    assert set(comparison.failed) == {"too-large-seed0", "too-large-seed1"}
    ends = {name: json.loads((compared / name / "summary.json").read_text())["mean_loss_nats"]["end"] for name in RUNS}
    difference = comparison.variants["versatune"].differences[MEAN]
    paired = [ends[f"versatune-seed{seed}"] - ends[f"uniform-seed{seed}"] for seed in (0, 1)]
    assert difference.mean == pytest.approx(sum(paired) / 2) and difference.num_seeds == 2
    printed = (compared / "stdout.txt").read_text()
    assert f"{comparison.variants['uniform'].means[MEAN].mean:.3f}" in printed
    assert "Traceback" not in printed and "ray::" not in printed
    assert (compared / "compare.html").stat().st_size > 100_000
