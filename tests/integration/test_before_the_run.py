"""What a run finds out about its base model before it trains: the distribution it knows, what is important in it."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.prepare.detection.quantification import DetectedDistribution
from tests.integration.masked_training import base_weights
from tests.runs import DOMAINS, raymix, read_lines, write_run
from workers.strategies.cofitune.importance import read_importance

pytestmark = pytest.mark.soak
DETECTION = {
    "texts_per_round": 24,
    "max_texts": 48,
    "calibration": {"texts_per_domain": 6, "opening_tokens": 3},
    "generation": {"max_new_tokens": 20, "batch_size": 8},
    "num_bootstrap": 10,
}
COFITUNE = {"type": "cofitune", "layers": [0.5, 1.0], "importance": {"num_rows": 4, "domains": ["law", "add"]}}


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose first shares have been detected, and distribution.json beside it."""
    config = write_run(
        tmp_path_factory.mktemp("before"),
        mixing__initial="detected",
        detection=DETECTION,
        training__strategy=COFITUNE,
        training__max_steps=6,
        training__deepspeed__zero_stage=3,
        cluster__num_workers=1,
    )
    done = raymix("detect", config, "--output", config.parent / "distribution.json")
    assert done.returncode == 0, done.stderr
    return config


@pytest.fixture(scope="module")
def config(detected: Path) -> Path:
    """The configuration of a run that has ended."""
    done = raymix("run", detected)
    assert done.returncode == 0, done.stderr
    return detected


def test_it_starts_from_what_its_base_model_knows(config: Path) -> None:
    run = config.parent / "runs" / "small"
    found = DetectedDistribution.read(run / "distribution.json")
    first = json.loads((run / "weights" / "000000.json").read_text())
    assert first["shares"] == pytest.approx(found.shares) and set(found.shares) == set(DOMAINS)
    assert (run / "distribution.html").exists()
    assert json.loads((run / "config.json").read_text())["mixing"]["initial"] == "detected"
    assert found == DetectedDistribution.read(config.parent / "distribution.json")


def test_the_distribution_is_found_again_without_a_cluster_a_model_or_a_new_text(
    detected: Path, tmp_path: Path
) -> None:
    batches = sorted((detected.parent / "runs" / "detection").glob("texts-*/*.jsonl"))
    times = {path: path.stat().st_mtime_ns for path in batches}
    log = detected.parent / "runs" / "detection" / "raymix.log"  # of the cluster that wrote the texts
    log.unlink()
    again = raymix("detect", detected, "--output", tmp_path / "distribution.json")
    assert again.returncode == 0, again.stderr
    assert "corrected" in again.stdout and "round" in again.stdout
    assert not log.exists()
    found = DetectedDistribution.read(tmp_path / "distribution.json")
    assert found == DetectedDistribution.read(detected.parent / "distribution.json")
    assert len(batches) == 6 or found.is_converged
    assert {path: path.stat().st_mtime_ns for path in batches} == times


def test_it_measures_importance_and_trains_under_it(config: Path) -> None:
    folder = config.parent / "runs" / "small"
    importance = read_importance([folder / "importance.safetensors"])
    assert {kind: importance[kind].shape for kind in importance} == {"head": (2, 4), "up": (2, 64), "down": (2, 32)}
    assert json.loads((folder / "importance.json").read_text())["num_rows"] == 4
    measured = list((config.parent / "runs" / "importance").glob("*-*.safetensors"))
    assert len(measured) == 2 + 1  # two domains, and both together
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "mask" in line] == [4, 6]
    trained, base = base_weights(folder / "model"), base_weights(config.parent / "base")
    moved = {name for name in base if not torch.equal(trained[name], base[name])}
    assert moved == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "down")}
