"""Steps for a budget of steps, epochs or tokens: the same expected tokens for every mixture."""

from typing import Any, cast

import pytest

from orchestrator.config import RunConfig
from orchestrator.training.planning import count_steps
from orchestrator.training.preparation import DomainStores
from workers.data.store import TokenStore


class Sizes:
    """What planning reads of a store."""

    def __init__(self, num_rows: int, num_examples: int, num_tokens: int) -> None:
        self.num_rows, self.num_examples, self.num_tokens = num_rows, num_examples, num_tokens


STORES = {
    name: DomainStores(train=cast(TokenStore, sizes), eval=cast(TokenStore, Sizes(1, 1, 1)))
    for name, sizes in {"long": Sizes(100, 100, 50_000), "short": Sizes(300, 900, 30_000)}.items()
}


def steps(mixing: dict[str, Any], **training: Any) -> int:
    config = RunConfig.model_validate(
        {
            "name": "budget",
            "model": {"path": "owner/name"},
            "domains": {name: {"train": f"{name}.jsonl"} for name in STORES},
            "mixing": mixing,
            "training": {"global_batch_size": 10, "micro_batch_size": 5} | (training or {"max_tokens": 100_000}),
        }
    )
    return count_steps(config, STORES)


@pytest.mark.parametrize(
    ("mixing", "tokens_per_row"),
    [
        ({"type": "fixed", "shares": {"long": 1.0, "short": 0.0}}, 500.0),
        ({"type": "fixed", "shares": {"long": 0.0, "short": 1.0}}, 100.0),
        # Half of the examples each, of which a row holds 1 and 3: three rows of four are long.
        ({"type": "uniform"}, 0.75 * 500 + 0.25 * 100),
        ({"type": "versatune", "initial": "uniform"}, 0.75 * 500 + 0.25 * 100),
        ({"type": "uniform", "unit": "tokens"}, (1 / 500 * 500 + 1 / 100 * 100) / (1 / 500 + 1 / 100)),
        ({"type": "fixed", "shares": "detected"}, 80_000 / 400),
    ],
)
def test_a_budget_of_tokens_follows_the_mixture(mixing: dict[str, Any], tokens_per_row: float) -> None:
    assert abs(steps(mixing) - 100_000 / tokens_per_row / 10) <= 0.5


def test_steps_and_epochs_do_not_depend_on_the_mixture() -> None:
    for mixing in ({"type": "uniform"}, {"type": "fixed", "shares": {"long": 1.0, "short": 0.0}}):
        assert steps(mixing, max_steps=7) == 7
        assert steps(mixing, epochs=0.5) == 20
        assert steps(mixing, epochs=0.51) == 21  # 20.4: no row is left out


def test_the_smallest_budget_is_a_step() -> None:
    assert steps({"type": "uniform"}, max_tokens=1) == steps({"type": "uniform"}, epochs=1e-6) == 1


def test_three_epochs_of_mixture_of_skills_are_its_papers_steps() -> None:
    config = RunConfig.model_validate(
        {
            "name": "paper",
            "model": {"path": "owner/name"},
            "domains": {"all": {"train": "all.jsonl"}},
            "mixing": {"type": "uniform"},
            "training": {"epochs": 3, "global_batch_size": 64},
        }
    )
    rows = cast(TokenStore, Sizes(103_400, 103_400, 1))
    assert count_steps(config, {"all": DomainStores(train=rows, eval=rows)}) == 4847  # arXiv 2406.08811, section 4
