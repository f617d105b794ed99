"""The search for where to train, on tables of scores."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from orchestrator.sweeps.coarse.tree import BROAD_RANGES, Candidate, CandidateScore, halves, pareto_set, search

NARROW = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
ATTENTION, FEED_FORWARD = ("attention",), ("feed_forward",)


class Table:
    """Scores nodes by a formula and remembers what it was asked."""

    def __init__(self, uni: Callable[[Candidate], float]) -> None:
        self.uni = uni
        self.calls: list[list[Candidate]] = []

    def __call__(self, nodes: Sequence[Candidate]) -> Mapping[Candidate, CandidateScore]:
        self.calls.append(list(nodes))
        return {node: CandidateScore(spec=self.uni(node), vers=0.0) for node in nodes}

    @property
    def num_trainings(self) -> int:
        return sum(len(call) for call in self.calls)


def near(center: float, bonus: Mapping[tuple[str, ...], float]) -> Callable[[Candidate], float]:
    """Ranges score by how near their middle is to `center`, modules by a bonus."""
    return lambda node: 1.0 - abs(sum(node.layers) / 2 - center) + bonus.get(node.modules, 0.0)


def test_it_finds_the_best_node_with_thirteen_trainings() -> None:
    table = Table(near(0.3, {FEED_FORWARD: 0.1, ("up",): 0.2}))
    result = search(table)
    assert result.winner == Candidate((0.25, 0.5), ("up",))
    assert [len(call) for call in table.calls] == [6, 4, 3]
    assert [step.kept[0].layers for step in result.steps] == [(0.0, 0.5), (0.25, 0.5), (0.25, 0.5)]


def test_no_node_is_trained_twice() -> None:
    table = Table(near(0.4, {}))
    search(table, beam_width=3)
    asked = [node for call in table.calls for node in call]
    assert len(asked) == len(set(asked))


def test_branches_share_the_half_that_both_have() -> None:
    table = Table(lambda node: 1.0 if node.layers in ((0.0, 0.5), (0.25, 0.75), (0.25, 0.5)) else 0.0)
    search(table, beam_width=2)
    # The halves of (0, 1/2] and (1/4, 3/4] are three ranges, not four; the beam then holds two of them.
    assert [len(call) for call in table.calls] == [6, 6, 6]


def test_a_tie_becomes_a_branch_and_a_clear_loser_does_not() -> None:
    scores = {(0.0, 0.5): 1.0, (0.25, 0.75): 0.995, (0.5, 1.0): 0.9, (0.5, 0.75): 2.0}
    table = Table(lambda node: scores.get(node.layers, 0.0))
    tied = search(table, tie_margin=0.01)
    assert [node.layers for node in tied.steps[0].kept] == [(0.0, 0.5), (0.25, 0.75)]
    assert tied.winner.layers == (0.5, 0.75)  # found through the branch that was not the best of step 1
    greedy = search(Table(lambda node: scores.get(node.layers, 0.0)), tie_margin=0.001)
    assert [node.layers for node in greedy.steps[0].kept] == [(0.0, 0.5)]
    assert greedy.winner.layers == (0.0, 0.25)


def test_the_beam_keeps_as_many_ranges_as_it_is_wide() -> None:
    scores = {(0.0, 0.5): 1.0, (0.25, 0.75): 0.8, (0.5, 1.0): 0.9, (0.75, 1.0): 2.0}
    wide = search(Table(lambda node: scores.get(node.layers, 0.0)), beam_width=2)
    assert [node.layers for node in wide.steps[0].kept] == [(0.0, 0.5), (0.5, 1.0)]
    assert wide.winner.layers == (0.75, 1.0)


def test_a_range_counts_by_its_better_module() -> None:
    uni = {
        Candidate((0.5, 1.0), ATTENTION): 1.0,
        Candidate((0.0, 0.5), ATTENTION): 0.6,
        Candidate((0.0, 0.5), FEED_FORWARD): 0.6,
    }
    result = search(Table(lambda node: uni.get(node, 0.0)))
    assert result.steps[0].kept == [Candidate((0.5, 1.0), ATTENTION)]


def test_the_weight_decides_between_speciality_and_versatility() -> None:
    def score(nodes: Sequence[Candidate]) -> Mapping[Candidate, CandidateScore]:
        return {
            n: CandidateScore(spec=0.9, vers=0.5) if n.modules == ATTENTION else CandidateScore(spec=0.6, vers=0.9)
            for n in nodes
        }

    sets = (ATTENTION, FEED_FORWARD)
    assert search(score, versatility_weight=0.1, module_sets=sets).winner.modules == ATTENTION
    assert search(score, versatility_weight=1.0, module_sets=sets).winner.modules == FEED_FORWARD


def test_the_pareto_set_holds_what_nothing_is_better_than() -> None:
    nodes = [Candidate((0.0, 0.5), (str(i),)) for i in range(5)]
    scores = dict(
        zip(
            nodes,
            [
                CandidateScore(1.0, 0.2),
                CandidateScore(0.8, 0.8),
                CandidateScore(0.7, 0.8),
                CandidateScore(0.2, 0.9),
                CandidateScore(0.1, 0.1),
            ],
            strict=True,
        )
    )
    assert pareto_set(scores) == [nodes[0], nodes[1], nodes[3]]


def test_halves_of_broad_ranges_are_the_narrow_ones() -> None:
    assert {half for layers in BROAD_RANGES for half in halves(layers)} == set(NARROW)


def test_a_node_without_a_score_is_named() -> None:
    with pytest.raises(ValueError, match="no score for"):
        search(lambda nodes: {})
