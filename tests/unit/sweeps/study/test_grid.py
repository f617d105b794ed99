"""The paper's grid, and that what its cells share is planned once."""

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.study.driver import estimate_study, estimate_view
from orchestrator.sweeps.study.grid import Trainings, build_cells, format_fraction, plan_trainings
from tests.unit.sweeps.stages.staged import config, fake_stores

PAPER = {"specialised": ["code", "math"], "general": ["general"]}


def study(**changes: Any) -> SweepConfig:
    return config(study=PAPER | changes)


def plan(settings: SweepConfig) -> Trainings:
    return plan_trainings(build_cells(settings), fake_stores)


def test_the_papers_grid_has_the_cells_and_trainings_counted_by_hand() -> None:
    """single 3 x 5, four grids x 5, dmt 5, three strategies: 43 cells.

    Distinct: single 15, mix 5, fixed_general and fixed_special 4 each (k = 1 is mix), small_general 3 (1 is
    fixed_general at 1/64, 1/64 is mix), multi_task 0 (mix at 1), sequential 1, mixed_sequential 1, dmt 5: 38.
    Trainings: 31 cells of one stage; sequential 2 more (its first is single), the common first stage of code + math 1,
    general after it 1, dmt's second stages 5: 40.
    """
    trainings = plan(study())
    groups = Counter(planned.cell.group for planned in trainings.cells)
    assert groups == {
        "single": 15,
        "mix": 5,
        "fixed_general": 5,
        "fixed_special": 5,
        "small_general": 5,
        "dmt": 5,
        "multi_task": 1,
        "sequential": 1,
        "mixed_sequential": 1,
    }
    assert (len(trainings.cells), len(trainings.distinct_chains), len(trainings.nodes)) == (43, 38, 40)
    # From the base: 31 + code-math. After those: sequential's second, general after code-math, 5 of dmt. Then its last.
    depths: dict[str | None, int] = {None: 0}
    for node in trainings.nodes.values():  # each after the one that it starts from
        depths[node.key] = depths[node.parent.key if node.parent else None] + 1
    assert sorted(Counter(depths.values()).items()) == [(0, 1), (1, 32), (2, 7), (3, 1)]
    assert len({planned.cell.name for planned in trainings.cells}) == 43


def test_seeds_share_nothing_and_move_the_sub_samples_too() -> None:
    trainings = plan(study(seeds=[0, 5]))
    assert (len(trainings.cells), len(trainings.nodes)) == (86, 80)
    seeds = {(each.planned.run.seed, each.planned.run.data.sample_seed) for each in trainings.nodes.values()}
    assert seeds == {(0, 0), (5, 1)}


def test_dmt_at_zero_is_mixed_sequential_and_other_grids_leave_zero_out() -> None:
    trainings = plan(study(k=[0, 1], grids=["single", "mix"]))
    by_group = {(p.cell.group, p.cell.k): p.chain for p in trainings.cells if p.cell.group != "single"}
    assert by_group["dmt", 0] == by_group["mixed_sequential", 1]
    assert by_group["mix", 1] == by_group["multi_task", 1]
    assert not [key for key in by_group if key[0] == "mix" and key[1] == 0]


@pytest.mark.parametrize(("budget", "total"), [("max_steps", 120), ("max_tokens", 1_200_000)])
def test_equal_budgets_are_divided_among_the_stages(budget: str, total: int) -> None:
    trainings = plan(study(**{budget: total}))
    for planned in trainings.cells:
        each = [getattr(trainings.nodes[digest].planned.run.training, budget) for digest in planned.chain]
        assert sum(each) == total and len(set(each)) == 1
        assert all(trainings.nodes[digest].planned.run.training.epochs is None for digest in planned.chain)


def test_epochs_are_each_stages_own() -> None:
    trainings = plan(study(epochs=2))
    assert {node.planned.run.training.epochs for node in trainings.nodes.values()} == {2}


def test_the_estimate_counts_every_training_once() -> None:
    settings = config(study=PAPER | {"grids": ["mix"], "k": [1], "strategies": ["multi_task", "mixed_sequential"]})
    estimate = estimate_study(plan(settings), tokens_per_second=1000)
    rows = 3 * (110_142 + 20_022 + 86_060)  # three epochs of everything, together and in two stages
    assert (estimate.num_cells, estimate.num_distinct_cells, len(estimate.costs)) == (3, 2, 3)
    assert sum(cost.num_rows for cost in estimate.costs.values()) == pytest.approx(2 * rows, rel=1e-3)
    left = sum(cost.num_tokens for cost in estimate.costs.values() if not cost.is_done)
    assert left == pytest.approx(2 * 100 * rows, rel=1e-3) and estimate.tokens_per_second == 1000
    assert estimate_view(estimate)


def test_steps_by_hand_at_batch_128() -> None:
    """The paper's confound: 2,582 steps of maths at k = 1, 11 at 1/256 (three epochs, rounded up)."""
    trainings = plan(study(grids=["single"], strategies=[], k=[1, 1 / 256]))
    estimate = estimate_study(trainings, tokens_per_second=1)
    steps = {(p.cell.subject, format_fraction(p.cell.k)): estimate.costs[p.chain[0]].steps for p in trainings.cells}
    assert (steps["math", "1"], steps["math", "1/256"]) == (2582, 11)
    assert (steps["code", "1"], steps["code", "1/256"]) == (470, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"specialised": ["law"]}, r"study.specialised: \['law'\] are not trained"),
        ({"general": ["chat"]}, r"study.general: \['chat'\] are not trained"),
        ({"specialised": ["math", "general"]}, "both specialised and general"),
        ({"k": [0.5, 0.5]}, "0.5 given more than once"),
        ({"epochs": 1, "max_steps": 2}, "give one of"),
        ({"grids": [], "strategies": []}, "compares nothing"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        study(**changes)
