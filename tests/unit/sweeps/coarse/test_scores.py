"""Spec and Vers from held-out losses and from files, and the runs that a search makes."""

import json
import math
from pathlib import Path

import pytest
import yaml

from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.records import DomainSummary
from orchestrator.sweeps.coarse.driver import node_runs, override, strategy_of
from orchestrator.sweeps.coarse.page import node_title, table, write_search_page
from orchestrator.sweeps.coarse.tree import (
    Candidate,
    MissingScoresError,
    ModelScores,
    gain_and_rest,
    read_task_scores,
    score_by_losses,
    score_by_tasks,
    search,
)
from tests.unit.sweeps.coarse.test_tree import Table, near


def summary(start: float, end: float) -> DomainSummary:
    return DomainSummary(loss_nats_start=start, loss_nats_end=end)


def config(tmp_path: Path, **search_settings: object) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "where",
            "output_dir": tmp_path,
            "model": {"path": "owner/name"},
            "domains": {
                "math": {"train": "math.jsonl"},
                "code": {"train": "code.jsonl", "count": 50},
                "law": {"eval": "law.jsonl"},
            },
            "mixing": {"type": "versatune"},
            "training": {"max_steps": 100, "global_batch_size": 8},
            "coarse_search": {"speciality": ["math"], **search_settings},
        }
    )


def test_scores_are_relative_to_full_fine_tuning_and_to_the_base() -> None:
    domains = {"math": summary(3.0, 2.5), "code": summary(2.0, 2.0 + math.log(2)), "law": summary(1.0, 1.0)}
    gain, left = gain_and_rest(domains, ["math"])
    assert gain == pytest.approx(0.5)
    assert left == pytest.approx((0.5 + 1.0) / 2)  # code's tokens became half as probable
    score = score_by_losses(gain, left, full_gain=0.8)
    assert (score.spec, score.vers) == (pytest.approx(0.625), left)
    assert score.uni(2.0) == pytest.approx(0.625 + 1.5)


def test_there_is_no_score_where_full_fine_tuning_gains_nothing() -> None:
    with pytest.raises(ValueError, match=r"by \+0\.1000 nats"):
        score_by_losses(0.1, 1.0, full_gain=-0.1)


def test_task_scores_come_from_files_and_missing_ones_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "task_scores.json").write_text(json.dumps({"speciality": 0.4, "versatility": 0.6}))
    with pytest.raises(MissingScoresError) as caught:
        read_task_scores([tmp_path / "a", tmp_path / "b"])
    assert caught.value.folders == [tmp_path / "b"] and str(tmp_path / "b") in str(caught.value)
    (tmp_path / "b" / "task_scores.json").write_text('{"speciality": "high"}')
    with pytest.raises(ValueError, match=r"b/task_scores\.json"):
        read_task_scores([tmp_path / "a", tmp_path / "b"])


def test_task_scores_are_normalised() -> None:
    full, base = ModelScores(speciality=0.5, versatility=0.3), ModelScores(speciality=0.1, versatility=0.6)
    score = score_by_tasks(ModelScores(speciality=0.4, versatility=0.54), full, base)
    assert (score.spec, score.vers) == (pytest.approx(0.8), pytest.approx(0.9))
    with pytest.raises(ValueError, match="above 0"):
        score_by_tasks(full, ModelScores(speciality=0.0, versatility=0.3), base)


def test_a_node_trains_the_speciality_alone_and_measures_all(tmp_path: Path) -> None:
    runs = node_runs(config(tmp_path, num_seeds=3), Candidate((0.25, 0.5), ("up", "attention")))
    assert [run.seed for run in runs] == [0, 1, 2]
    assert len({run.folder for run in runs}) == 3
    for run in runs:
        assert run.trained_domains == ["math"] and list(run.domains) == ["math", "code", "law"]
        strategy = run.training.strategy
        assert (strategy.type, strategy.mask, strategy.layers) == ("cofitune", "none", (0.25, 0.5))  # type: ignore[union-attr]
        assert strategy.trained_modules == ["up", "q", "k", "v"]  # type: ignore[union-attr]


def test_nodes_of_other_modules_or_layers_have_other_folders(tmp_path: Path) -> None:
    nodes = search(Table(near(0.3, {})), beam_width=3).scores
    folders = {run.folder for node in nodes for run in node_runs(config(tmp_path), node)}
    assert len(folders) == 2 * len(nodes)


def test_the_speciality_is_trained_on_and_something_else_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"coarse_search.speciality: \['law'\] are not trained"):
        config(tmp_path, speciality=["law"])
    alone = config(tmp_path).model_dump(mode="json", exclude_unset=True)
    alone["domains"] = {"math": alone["domains"]["math"]}
    with pytest.raises(ValueError, match="no other domain is left"):
        SweepConfig.model_validate(alone)


def test_what_is_printed_for_the_winner_is_what_run_takes(tmp_path: Path) -> None:
    given = config(tmp_path).model_dump(mode="json", exclude_unset=True)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    strategy = strategy_of(Candidate((0.25, 0.5), ("attention", "up")))
    loaded = load_config(path, [override(strategy)], check_files=False).training.strategy
    assert loaded.type == "cofitune" and loaded.layers == (0.25, 0.5)
    assert loaded.modules == ["attention", "up"] and loaded.mask == "update"


def test_table_and_page_show_every_node(tmp_path: Path) -> None:
    result = search(Table(near(0.3, {("up",): 0.2})))
    rows = table(result).rows
    assert len(rows) == 13 and [row.label for row in rows if row.is_best] == [node_title(result.winner)]
    write_search_page("where", result, tmp_path / "coarse.html")
    page = (tmp_path / "coarse.html").read_text()
    assert all(node_title(node) in page for node in result.scores)
    assert "layers 25-50 %, up" in page
