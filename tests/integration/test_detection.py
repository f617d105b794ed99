"""Detection on a cluster, as the start of a run: real workers write, the shares that are found are the run's first."""

import json
from pathlib import Path

import pytest

from orchestrator.detection.distribution import Distribution
from tests.runs import DOMAINS, raymix, write_run

DETECTION = {
    "texts_per_round": 24,
    "max_texts": 48,
    "calibration": {"texts_per_domain": 6, "opening_tokens": 3},
    "generation": {"max_new_tokens": 20, "batch_size": 8},
    "num_bootstrap": 10,
}


def test_a_run_starts_from_what_its_base_model_knows(tmp_path: Path) -> None:
    config = write_run(
        tmp_path, mixing__initial="detected", training__max_steps=3, evaluation__every=2, detection=DETECTION
    )
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    found = Distribution.read(run / "distribution.json")
    first = json.loads((run / "weights" / "000000.json").read_text())
    assert first["shares"] == pytest.approx(found.shares) and set(found.shares) == set(DOMAINS)
    assert (run / "distribution.html").exists()
    batches = sorted((tmp_path / "runs" / "detection").glob("texts-*/*.jsonl"))
    assert len(batches) == 6 or found.is_converged
    times = {path: path.stat().st_mtime_ns for path in batches}

    # Found again without a cluster, a model or a new text.
    again = raymix("detect", config, "--output", tmp_path / "distribution.json")
    assert again.returncode == 0, again.stderr
    assert "corrected" in again.stdout and "round" in again.stdout
    assert Distribution.read(tmp_path / "distribution.json") == found
    assert {path: path.stat().st_mtime_ns for path in batches} == times
    named = json.loads((run / "config.json").read_text())
    assert named["mixing"]["initial"] == "detected"
