"""The shell of the tree search over runs that are done already: no cluster is needed to choose, stop and go on."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.coarse.driver import CoarseRecord, coarse_search, full_runs, node_runs, search_folder
from orchestrator.sweeps.coarse.tree import (
    BROAD_RANGES,
    LAYER_STEP_SETS,
    MODULE_STEP_SETS,
    Candidate,
    MissingScoresError,
    halves,
)
from tests.unit.sweeps.summaries import write_summary

NARROW = sorted({half for layers in BROAD_RANGES for half in halves(layers)})
NODES = [Candidate(layers, modules) for layers in BROAD_RANGES for modules in LAYER_STEP_SETS] + [
    Candidate(layers, modules) for layers in NARROW for modules in MODULE_STEP_SETS
]


def make_config(folder: Path, num_layers: int = 4, **search: Any) -> SweepConfig:
    (folder / "base").mkdir(exist_ok=True)
    model = {"model_type": "llama", "num_hidden_layers": num_layers, "hidden_size": 8, "num_attention_heads": 2}
    (folder / "base" / "config.json").write_text(json.dumps(model))
    return SweepConfig.model_validate(
        {
            "name": "where",
            "output_dir": str(folder / "runs"),
            "model": {"path": str(folder / "base")},
            "domains": {name: {"train": f"{name}.jsonl"} for name in ("law", "code", "chat")},
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 4},
            "coarse_search": {"speciality": ["law"], "tie_margin": 0, **search},
        }
    )


def finish(run: SweepConfig, gain: float = 1.0, lost: float = 0.0) -> None:
    """A finished run that lowered law's loss by `gain` and raised code's by `lost`."""
    ends = {"law": 3.0 - gain, "code": 3.0 + lost, "chat": 3.0}
    with claim_folder(run):
        write_summary(run, 3.0, ends)


def finish_all(config: SweepConfig, gain: Callable[[Candidate, int], float], full: tuple[float, float]) -> None:
    for run in full_runs(config):
        finish(run, *full)
    for node in NODES:
        for run in node_runs(config, node):
            finish(run, gain(node, run.seed))


def read_record(config: SweepConfig) -> CoarseRecord:
    return CoarseRecord.model_validate_json((search_folder(config) / "coarse.json").read_bytes())


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_model_without_a_layer_for_every_range_is_refused_before_anything_is_written(
    tmp_path: Path, num_layers: int
) -> None:
    with pytest.raises(ValueError, match=f"of {num_layers} layers has no layer in it"):
        coarse_search(make_config(tmp_path, num_layers), Console(quiet=True))
    assert not (tmp_path / "runs").exists()


def test_the_winner_is_the_best_over_all_seeds(tmp_path: Path) -> None:
    """The first seed alone would choose other layers and another module at every step."""
    config = make_config(tmp_path, num_seeds=2)

    def gain(node: Candidate, seed: int) -> float:
        near = 1.0 - abs(sum(node.layers) / 2 - (0.3 if seed else 0.8))
        bonus = 0.1 * (node.modules == ("up",)) if seed else 0.02 * (node.modules == ("down",))
        return near * (5 if seed else 1) + bonus

    finish_all(config, gain, full=(2.0, math.log(2)))
    output = io.StringIO()
    record = coarse_search(config, Console(file=output, width=100))
    assert (record.winner["layers"], record.winner["modules"]) == ([0.25, 0.5], ["up"])
    assert record == read_record(config) and len(record.nodes) == 13
    for node in record.nodes:
        gains = [gain(Candidate(node.layers, tuple(node.modules)), seed) for seed in (0, 1)]
        assert (node.spec, node.vers) == (pytest.approx(sum(gains) / 2 / 2.0), pytest.approx(1.0))
        assert [run.name[-5:] for run in node.runs] == ["seed0", "seed1"]
    assert record.full_versatility == pytest.approx(0.75)  # code's tokens are half as probable, chat's as before
    written = yaml.safe_load((search_folder(config) / "strategy.yaml").read_text())
    assert written == {"strategy": record.winner}
    assert "raymix run CONFIG --set 'training.strategy=" in output.getvalue()
    assert "layers 25-50 %, up" in (search_folder(config) / "coarse.html").read_text()


def test_it_stops_where_task_scores_are_missing_names_them_and_goes_on(tmp_path: Path) -> None:
    config = make_config(tmp_path, num_seeds=1, scores="files", module_sets=[["attention"], ["feed_forward"]])
    finish_all(config, lambda node, seed: 1.0, full=(1.0, 0.0))
    base, full = search_folder(config) / "base", full_runs(config)[0].folder

    def score(folder: Path, speciality: float, versatility: float) -> None:
        folder.mkdir(exist_ok=True)
        scores = {"speciality": speciality, "versatility": versatility}
        (folder / "task_scores.json").write_text(json.dumps(scores))

    def search_until_scores_are_missing() -> set[Path]:
        with pytest.raises(MissingScoresError) as caught:
            coarse_search(config, Console(quiet=True))
        assert not (search_folder(config) / "coarse.json").exists()
        return set(caught.value.folders)

    def folders(ranges: Any) -> dict[Path, Candidate]:
        nodes = [Candidate(layers, modules) for layers in ranges for modules in LAYER_STEP_SETS]
        return {node_runs(config, node)[0].folder: node for node in nodes}

    broad, narrow = folders(BROAD_RANGES), folders(halves((0.25, 0.75)))
    assert search_until_scores_are_missing() == {base, full, *broad}
    score(base, 0.1, 0.5)
    score(full, 0.8, 0.4)
    for folder, node in broad.items():
        score(folder, 0.6 if node.layers == (0.25, 0.75) else 0.4, 0.45)
    assert search_until_scores_are_missing() == set(narrow)
    for folder, node in narrow.items():
        score(folder, 0.6 if node == Candidate((0.5, 0.75), ("feed_forward",)) else 0.5, 0.4)
    coarse_search(config, Console(quiet=True))
    record = read_record(config)
    assert (record.winner["layers"], record.winner["modules"]) == ([0.5, 0.75], ["feed_forward"])
    winner = next(node for node in record.nodes if node.steps == [2, 3] and node.is_kept)
    assert (winner.spec, winner.vers, record.full_versatility) == pytest.approx((0.6 / 0.8, 0.4 / 0.5, 0.4 / 0.5))
