"""The sample stream is a function of (seed, journal, step), however and whenever it is asked for."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.stores import make_schedule, weights
from workers.contracts import DomainWeights
from workers.data.permutation import derive_key, permutation
from workers.data.schedule import DomainRows, Schedule

NAMES = ("a", "b", "c", "d")
Stream = dict[int, tuple[int, list[int], list[int]]]


@st.composite
def journals(draw: Any, num_steps: int) -> list[DomainWeights]:
    """Versions at random steps; some with zero shares, some that replace the one before within its first step."""
    steps = sorted(draw(st.lists(st.integers(1, num_steps), max_size=6)))
    journal = []
    for version, step in enumerate([1, *steps]):
        parts = draw(st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5]), min_size=4, max_size=4))
        journal.append(weights(version, step, **dict(zip(NAMES, [parts[0] + 0.1, *parts[1:]], strict=True))))
    return journal


def read(schedule: Schedule, first: int, last: int, blocks: Any = lambda: 1) -> Stream:
    """Version, domains and rows of every step, asked for in blocks."""
    stream: Stream = {}
    while first <= last:
        rows = schedule.rows(first, min(blocks(), last - first + 1))
        for s in range(rows.num_steps):
            stream[first + s] = (rows.weights_version, rows.domain_SB[s].tolist(), rows.row_SB[s].tolist())
        first += rows.num_steps
    return stream


SIZES = dict(zip(NAMES, (5, 40, 11, 1), strict=True))
NUM_STEPS = 60


def reference_stream(journal: list[DomainWeights], rows_per_step: int) -> Stream:
    """Everything announced at once, step by step from the first."""
    schedule = make_schedule(SIZES, rows_per_step)
    for version in journal:
        schedule.announce(version)
    return read(schedule, 1, NUM_STEPS)


@settings(max_examples=20, deadline=None)
@given(journals(NUM_STEPS), st.integers(1, 20), st.data())
def test_the_stream_is_the_same_however_it_is_asked_for(
    journal: list[DomainWeights], rows_per_step: int, data: Any
) -> None:
    expected = reference_stream(journal, rows_per_step)
    random = data.draw(st.randoms(use_true_random=False))
    schedule = make_schedule(SIZES, rows_per_step)
    for version in journal:
        schedule.announce(version)
    assert read(schedule, 1, NUM_STEPS, lambda: random.randint(1, 25)) == expected
    for step in random.choices(range(1, NUM_STEPS + 1), k=8):  # jumps, back and forth
        assert read(schedule, step, step) == {step: expected[step]}


@settings(max_examples=20, deadline=None)
@given(journals(NUM_STEPS), st.integers(1, 20), st.data())
def test_the_stream_is_the_same_whenever_a_version_is_announced(
    journal: list[DomainWeights], rows_per_step: int, data: Any
) -> None:
    """Plans reach far ahead of, or not up to, the step that a version claims: what is planned later is right."""
    expected = reference_stream(journal, rows_per_step)
    random = data.draw(st.randoms(use_true_random=False))
    schedule = make_schedule(SIZES, rows_per_step)
    for version in journal:
        schedule.announce(version)
        schedule.announce(version)  # delivered twice
        read(schedule, random.randint(1, NUM_STEPS), NUM_STEPS, lambda: random.randint(1, 3))
    assert read(schedule, 1, NUM_STEPS, lambda: random.randint(1, 25)) == expected


def test_a_version_may_claim_steps_that_were_planned_long_ago() -> None:
    schedule = make_schedule(SIZES, 4)
    schedule.announce(weights(0, 1, a=1, b=1, c=1, d=1))
    read(schedule, 1, 200)
    schedule.announce(weights(1, 2, a=1, b=0, c=0, d=0))
    assert set(read(schedule, 2, 2)[2][1]) == {0}


@settings(max_examples=20, deadline=None)
@given(journals(NUM_STEPS), st.integers(1, 20))
def test_every_row_is_drawn_once_before_any_is_drawn_twice(journal: list[DomainWeights], rows_per_step: int) -> None:
    drawn: dict[int, list[int]] = {domain: [] for domain in range(len(NAMES))}
    for _, domains, rows in reference_stream(journal, rows_per_step).values():
        step_rows: dict[int, list[int]] = {}
        for domain, row in zip(domains, rows, strict=True):
            step_rows.setdefault(domain, []).append(row)
        for domain, some in step_rows.items():
            drawn[domain] += some
            times = Counter(drawn[domain])
            # Inside a step the order is shuffled, so an epoch is judged at the end of the step.
            seen = [times.get(row, 0) for row in range(SIZES[NAMES[domain]])]
            assert max(seen) - min(seen) <= 1


def test_epochs_are_shuffled_anew_and_other_seeds_differ() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        schedule = make_schedule({"a": 50}, 1, seed)
        schedule.announce(weights(0, 1, a=1))
        rows = schedule.rows(1, 200).row_SB[:, 0].reshape(4, 50)
        return [tuple(epoch) for epoch in rows.tolist()]

    assert len({order for seed in (0, 1) for order in orders(seed)}) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.integers(0, 5))
def test_a_further_domain_reshuffles_no_other(rows_per_step: int, seed: int) -> None:
    """The n-th row that a domain gives is the same whichever domains stand beside it."""
    alone = make_schedule({"b": 40}, 1, seed)
    alone.announce(weights(0, 1, b=1))
    order = [int(alone.rows(step).row_SB[0, 0]) for step in range(1, 41)]
    schedule = make_schedule({"x": 9, "b": 40, "y": 3}, rows_per_step, seed)
    schedule.announce(weights(0, 1, x=3, b=1, y=0.5))
    seen: list[int] = []
    step = 0
    while len(seen) < 40 - rows_per_step:
        step += 1
        rows = schedule.rows(step)
        some = rows.row_SB[0][rows.domain_SB[0] == 1].tolist()
        assert set(some) == set(order[len(seen) : len(seen) + len(some)])
        seen += some


def test_the_order_inside_a_step_is_a_permutation_keyed_by_seed_and_step() -> None:
    """However far into a block the step is; before it is shuffled, one domain's rows stand in the epoch's order."""
    schedule = make_schedule({"a": 48}, 8, seed=5)
    schedule.announce(weights(0, 1, a=1))
    epoch = permutation(derive_key(5, "domain", "a", 0), 48).reshape(6, 8)
    expected = [epoch[step - 1][permutation(derive_key(5, "step", step), 8)].tolist() for step in range(1, 7)]
    assert schedule.rows(1, 6).row_SB.tolist() == expected
    assert schedule.rows(4, 2).row_SB.tolist() == expected[3:5]


@pytest.mark.parametrize("steps_per_version", [1, 3])
@pytest.mark.parametrize("changing", [False, True])
def test_what_a_version_leaves_owing_the_next_ones_make_good(steps_per_version: int, changing: bool) -> None:
    """Three quarters of a row a version, or less, add up over the versions to the rows that the shares have given."""
    schedule = make_schedule(SIZES, 2)
    num_versions = 120
    given_D = np.zeros(4)
    for version in range(num_versions):
        first_step = 1 + version * steps_per_version
        b, c = (0.5, 0.25) if changing and version % 2 else (0.25, 0.5)
        schedule.announce(weights(version, first_step, a=0.125, b=b, c=c, d=0.125))
        for step in range(first_step, first_step + steps_per_version):
            given_D += 2 * np.array([0.125, b, c, 0.125])
            assert abs(schedule.rows(step).counts_SD[-1] - given_D).max() < 2, step


def test_a_domain_without_a_share_is_never_drawn_and_comes_in_when_it_gets_one() -> None:
    schedule = make_schedule({"a": 10, "b": 10}, 8)
    schedule.announce(weights(0, 1, a=1, b=0))
    schedule.announce(weights(1, 101, a=0, b=1))
    stream = read(schedule, 1, 150)
    assert all(set(stream[step][1]) == {0} for step in range(1, 101))
    assert all(set(stream[step][1]) == {1} for step in range(101, 151))


@pytest.mark.parametrize("rows_per_step", [1, 8, 64])
def test_shares_are_reached_in_the_unit_they_are_meant_in(rows_per_step: int) -> None:
    """Rows of a domain that packs four examples weigh four times, so it gives a quarter of the rows."""
    domains = [DomainRows("a", 100, 4.0), DomainRows("b", 100, 1.0), DomainRows("c", 100, 2.5)]
    schedule = Schedule(0, domains, rows_per_step)
    schedule.announce(weights(0, 1, a=0.5, b=0.3, c=0.2))
    num_steps = 8000 // rows_per_step
    counts_D = schedule.rows(1, num_steps).counts_SD[-1]
    units_D = counts_D * [4.0, 1.0, 2.5]
    assert units_D / units_D.sum() == pytest.approx([0.5, 0.3, 0.2], abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(journals(NUM_STEPS), st.integers(2, 9))
def test_a_step_of_one_domain_comes_as_often_as_the_share_says(
    journal: list[DomainWeights], rows_per_step: int
) -> None:
    schedule = Schedule(0, [DomainRows(name, size, 1.0) for name, size in SIZES.items()], rows_per_step, rows_per_step)
    for version in journal:
        schedule.announce(version)
    stream = read(schedule, 1, NUM_STEPS)
    assert read(schedule, 7, NUM_STEPS, lambda: 11) == {step: stream[step] for step in range(7, NUM_STEPS + 1)}
    steps_by_version: dict[int, list[int]] = {}
    drawn: dict[int, list[int]] = {d: [] for d in range(len(NAMES))}
    for version, domains, rows in stream.values():
        assert len(set(domains)) == 1 and len(domains) == rows_per_step
        steps_by_version.setdefault(version, []).append(domains[0])
        drawn[domains[0]] += rows
    for version, turns in steps_by_version.items():
        for d, name in enumerate(NAMES):
            # Within a step of the target, which starts from what the versions before left owing: at most one more.
            assert abs(turns.count(d) - journal[version].shares[name] * len(turns)) < 2
            assert journal[version].shares[name] or d not in turns
    for d, size in enumerate(SIZES.values()):
        times = np.bincount(np.array(drawn[d], dtype=np.int64), minlength=size)
        assert len(times) == size and times.max() - times.min() <= 1  # epoch after epoch


def test_counts_tell_what_was_given_since_the_first_step() -> None:
    schedule = make_schedule(SIZES, 7)
    schedule.announce(weights(0, 1, a=1, b=2, c=3, d=0))
    schedule.announce(weights(1, 11, a=3, b=1, c=1, d=1))
    total_D = np.zeros(4, dtype=np.int64)
    for step in range(1, 31):
        rows = schedule.rows(step)
        assert rows.taken_SD[0].tolist() == np.bincount(rows.domain_SB[0], minlength=4).tolist()
        total_D += rows.taken_SD[0]
        assert rows.counts_SD[0].tolist() == total_D.tolist()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (weights(3, 9, a=1, b=1), "the next one is 2"),
        (weights(1, 5, a=2, b=1), "the next one is 2"),  # another content for a version that is known
        (weights(2, 9, a=1, x=1), r"is for \['a', 'x'\]"),
        (weights(2, 4, a=1, b=1), "claims step 4, but version 1 claims step 5"),
    ],
)
def test_a_journal_with_a_flaw_is_refused(version: DomainWeights, message: str) -> None:
    schedule = make_schedule({"a": 4, "b": 4}, 2)
    schedule.announce(weights(0, 1, a=1, b=1))
    schedule.announce(weights(1, 5, a=1, b=1))
    with pytest.raises(ValueError, match=message):
        schedule.announce(version)
    schedule.announce(weights(0, 1, a=1, b=1))  # an old one again changes nothing
    assert schedule.num_versions == 2
    assert schedule.version_of(4).version == 0 and schedule.version_of(5).version == 1
    with pytest.raises(ValueError, match="counted from 1"):
        schedule.version_of(0)
