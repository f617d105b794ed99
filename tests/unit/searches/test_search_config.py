"""What a search section may say."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.searches.base import describe_metric, score_losses
from tests.unit.sweeps.tune.searches import DOMAINS, config_with

SPACE = {"mixing.sigma": {"uniform": [0.1, 1.0]}}
CONSTANT = {"max_steps": 100, "global_batch_size": 8, "schedule": "constant"}


@pytest.mark.parametrize(
    ("search", "changes", "message"),
    [
        ({"space": {"mixing.sigma": {"uniform": [1.0, 0.1]}}}, {}, "lower bound 1 is not below the upper one 0.1"),
        ({"space": {"mixing.sigma": {"uniform": [0, 1], "choice": [1, 2]}}}, {}, "give one of uniform, log"),
        ({"space": {"mixing.sigma": {}}}, {}, "not 0"),
        ({"space": {"data.max_length": {"choice": [64, 128]}}}, {}, "'data.max_length' is not below mixing or tr"),
        ({"space": {"training.strategy.rank": {"choice": [1, 2]}}}, {}, "same for all trials; `raymix compare`"),
        ({"space": SPACE, "metric": {"art": 1.0}}, {}, r"\['art'\] are not domains of this run"),
        ({"space": SPACE, "metric": {"math": 0.0}}, {}, "all weights are 0"),
        ({"space": SPACE, "metric": "target"}, {}, "set compare.target"),
        ({"space": SPACE}, {"stages": {"plan": "multi_task"}}, "leave out `stages`"),
        ({"space": SPACE, "type": "pbt", "generations": 3}, {"training": CONSTANT}, "3 do not divide training.max_st"),
        ({"space": SPACE, "type": "pbt"}, {}, "set it to constant"),
        (
            {"space": {"training.weight_decay": {"uniform": [0, 1]}}, "type": "pbt"},
            {"training": CONSTANT},
            "cannot change from one generation to the next",
        ),
        ({"type": "regmix"}, {"domains": {"math": {"train": "m.jsonl"}}, "mixing": {"type": "uniform"}}, "add another"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(search: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_with({"type": "random"} | search, **changes)


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_the_ordinary_searches_have_sensible_defaults(name: str) -> None:
    search = config_with({"type": name, "space": SPACE}).search
    assert search is not None and search.metric == "mean" and search.max_concurrent is None


LOSSES = np.array([[1.0, 2.0, 6.0], [3.0, np.nan, 4.0]])


@pytest.mark.parametrize(
    ("metric", "first", "second"),
    [
        ("mean", 3.0, np.nan),
        ("worst", 6.0, np.nan),
        ("target", 6.0, 4.0),
        ({"math": 0.5, "law": 2.0}, 12.5, 9.5),
        ({"code": 1.0, "law": 0.0}, 2.0, np.nan),
    ],
)
def test_the_metric_is_one_number_of_the_losses(metric: Any, first: float, second: float) -> None:
    scores = score_losses(metric, LOSSES, DOMAINS, "law")
    assert scores == pytest.approx([first, second], nan_ok=True)


def test_the_metric_in_words() -> None:
    assert describe_metric("worst", None) == "worst loss"
    assert describe_metric("target", "law") == "loss of law"
    assert describe_metric({"math": 0.5, "code": 0.0, "law": 2}, None) == "loss 0.5 math + 2 law"
