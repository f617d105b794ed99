"""Steps for a budget of steps, epochs or tokens: the same expected tokens for every mixture."""

from typing import Any, cast

import pytest

from orchestrator.config.run import RunConfig
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.training.plan import budget_warning, count_steps
from workers.data.store import TokenStore


class Sizes:
    """What planning reads of a store."""

    def __init__(self, num_rows: int, num_examples: int, num_tokens: int) -> None:
        self.num_rows, self.num_examples, self.num_tokens = num_rows, num_examples, num_tokens


STORES = {
    name: DomainStores(train=cast(TokenStore, sizes), eval=cast(TokenStore, Sizes(1, 1, 1)))
    for name, sizes in {"long": Sizes(100, 100, 50_000), "short": Sizes(300, 900, 30_000)}.items()
}


def config_of(mixing: dict[str, Any], **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "budget",
            "model": {"path": "owner/name"},
            "domains": {name: {"train": f"{name}.jsonl"} for name in STORES},
            "mixing": mixing,
            "training": {"global_batch_size": 10, "micro_batch_size": 5} | (training or {"max_tokens": 100_000}),
        }
    )


def steps(mixing: dict[str, Any], **training: Any) -> int:
    return count_steps(config_of(mixing, **training), STORES)


def warning(**training: Any) -> str | None:
    return budget_warning(config_of({"type": "uniform"}, **training), STORES)


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


def test_a_budget_of_a_step_or_more_is_nothing_to_tell_of() -> None:
    assert warning(epochs=0.5) is None
    assert warning(epochs=0.025) is None  # 10 rows, one batch
    assert warning(epochs=1, global_batch_size=400) is None
    assert warning(max_steps=1) is None
    assert warning(max_tokens=4000) is None  # 10 rows of 400
    assert warning(max_tokens=2100) is None  # nearer to one step than to none


def test_a_budget_below_a_step_is_told_with_the_remedy() -> None:
    told = warning(epochs=1.5, global_batch_size=1000)
    assert told == (
        "training.epochs 1.5 is 600 sequences (the domains have 400), but a step trains on training.global_batch_size "
        "1,000 sequences, which is 2.5 epochs; lower global_batch_size to 400, or give more rows"
    )
    told = warning(epochs=0.01)
    assert told is not None and "is 4 sequences (the domains have 400)" in told and "which is 0.025 epochs" in told
    assert "lower global_batch_size and training.micro_batch_size, now 5 sequences per pass" in told
    told = warning(max_tokens=1900)
    assert told is not None and "training.max_tokens 1,900 is 4.75 sequences" in told


def test_a_batch_of_more_rows_than_there_are_is_told_whatever_the_budget() -> None:
    told = warning(max_steps=100, global_batch_size=10_240)
    assert told is not None and told.startswith("all domains together have 400 sequences, but a step trains on ")
    assert "which is 25.6 epochs; lower global_batch_size to 400" in told
    told = warning(max_tokens=10_000_000, global_batch_size=10_240)
    assert told is not None and "which is 25.6 epochs" in told
