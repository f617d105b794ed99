"""The schedule: (seed, journal of weights, step) -> the rows (sequences) of a step. Pure: no torch, clock or ranks.

    journal   step 1 .. 40: version 0     step 41 .. : version 1
    shares -> rows per step         apportionment.py: exact at every step of a version; if a step takes all its rows
                                    from one domain, the same for whole steps
    rows   -> row ids               a domain's n-th row is entry n mod R of epoch n // R's permutation,
                                    keyed by (seed, domain name, epoch): adding a domain reshuffles no other;
                                    a streamed domain comes in parts: one after the other, each with its own
                                    permutation, keyed by how many parts were drawn before it
    order inside the step           a permutation keyed by (seed, step); rank r then takes the r-th slice

Why a pure function: every rank computes the same global batch without communication, and a run resumes from any
checkpoint, with any number of ranks, without saved iterator state. The journal is durable, so a killed run draws the
same rows again; and a version that claims steps gathered ahead only means computing them again.

All state is a cursor: the apportionment before a step. Cursors are kept only to save time; every answer can be computed
again from the first one, before step 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.contracts import DomainWeights
from workers.data.apportionment import settle, take_rows
from workers.data.permutation import derive_key, permutation, permutations


@dataclass(frozen=True)
class DomainRows:
    """What the schedule knows about a domain's token store."""

    name: str
    num_rows: int  # of a streamed domain: in the parts that are known
    units_per_row: float  # mean examples (or tokens) in a row: converts shares into rows
    is_whole: bool = True  # False for a streamed domain until its last part is known


@dataclass(frozen=True)
class StepRows:
    """The rows of consecutive steps under one version, S steps of B rows each, in the order of the global batch."""

    first_step: int
    weights_version: int
    domain_SB: NDArray[np.int64]
    row_SB: NDArray[np.int64]
    taken_SD: NDArray[np.int64]  # rows of each domain in each step
    counts_SD: NDArray[np.int64]  # rows of each domain from step 1 through that step

    @property
    def num_steps(self) -> int:
        return len(self.domain_SB)


@dataclass(frozen=True)
class _Cursor:
    """The state of the apportionment before `next_step`, counted in draws: one row each, or a whole step's rows."""

    next_step: int
    version: int  # the version of the step before; -1 before step 1
    shares_D: NDArray[np.float64]  # that version's shares of rows, and so of draws
    debt_D: NDArray[np.float64]  # what previous versions owe
    carry_D: NDArray[np.float64]  # the part of it with which the targets start
    version_counts_D: NDArray[np.int64]  # draws taken in that version
    total_counts_D: NDArray[np.int64]  # rows taken since step 1

    @property
    def owed_D(self) -> NDArray[np.float64]:
        """Each domain's target minus its draws, over all versions."""
        return self.debt_D + self.shares_D * self.version_counts_D.sum() - self.version_counts_D


class _RowOrder:
    """The order in which a domain's rows are drawn: part after part, and from the first one again behind the last."""

    def __init__(self, seed: int, domain: DomainRows) -> None:
        self._seed = seed
        self._name = domain.name
        self._ends = np.array([domain.num_rows], dtype=np.int64)  # of the known parts, in row ids
        self._is_whole = domain.is_whole
        self._turn = -1  # the number of parts drawn before the one whose order is kept
        self._order = np.empty(0, dtype=np.int64)

    @property
    def num_known(self) -> float:
        """Draws for which the rows are known."""
        return np.inf if self._is_whole else int(self._ends[-1])

    def add_part(self, num_rows: int, is_last: bool) -> None:
        if self._is_whole:
            raise ValueError(f"domain {self._name!r}: a part is added behind the last one")
        self._ends = np.append(self._ends, self._ends[-1] + num_rows)
        self._is_whole = is_last

    def rows(self, first_draw: int, num_draws: int) -> NDArray[np.int64]:
        """Row ids of consecutive draws, counted from 0 over the whole run."""
        if first_draw + num_draws > self.num_known:
            raise ValueError(
                f"domain {self._name!r}: draw {first_draw + num_draws - 1:,} is in a part that is not known"
            )
        pieces = []
        while num_draws:
            epoch, row = divmod(first_draw, int(self._ends[-1]))
            part = int(np.searchsorted(self._ends, row, side="right"))
            start = int(self._ends[part - 1]) if part else 0
            self._begin(epoch * len(self._ends) + part, start, int(self._ends[part]) - start)
            piece = self._order[row - start : row - start + num_draws]
            pieces.append(piece)
            first_draw, num_draws = first_draw + len(piece), num_draws - len(piece)
        return np.concatenate(pieces)

    def _begin(self, turn: int, start: int, num_rows: int) -> None:
        if turn != self._turn:
            self._order = start + permutation(derive_key(self._seed, "domain", self._name, turn), num_rows)
            self._turn = turn


_CURSORS_KEPT = 16  # recent ones, to go back to when a new version claims steps that were already planned


class Schedule:
    """Computes which rows a step trains on, from the journal announced so far."""

    def __init__(self, seed: int, domains: Sequence[DomainRows], rows_per_step: int, rows_per_draw: int = 1) -> None:
        self.seed = seed
        self.domains = list(domains)
        self.rows_per_step = rows_per_step
        self.rows_per_draw = rows_per_draw  # rows that a domain gives together; divides `rows_per_step`
        self._names = {domain.name for domain in self.domains}
        self._journal: list[DomainWeights] = []
        self._orders = [_RowOrder(seed, domain) for domain in self.domains]
        zeros = np.zeros(len(self.domains))
        counts = np.zeros(len(self.domains), dtype=np.int64)
        self._start = _Cursor(1, -1, zeros, zeros, zeros, counts, counts)
        self._cursors = [self._start]

    def announce(self, weights: DomainWeights) -> None:
        """Append a version and drop the plans for the steps it claims; repeating a known version changes nothing.
        ValueError if it is not the next version, names other domains, or claims a step before the newest one."""
        if weights.version < len(self._journal) and weights == self._journal[weights.version]:
            return
        if weights.version != len(self._journal):
            raise ValueError(f"weights version {weights.version} announced, but the next one is {len(self._journal)}")
        if weights.shares.keys() != self._names:
            ours = sorted(self._names)
            raise ValueError(f"weights version {weights.version} is for {sorted(weights.shares)}, not {ours}")
        if self._journal and weights.effective_step < self._journal[-1].effective_step:
            raise ValueError(
                f"weights version {weights.version} claims step {weights.effective_step}, "
                f"but version {weights.version - 1} claims step {self._journal[-1].effective_step}"
            )
        self._journal.append(weights)
        self._cursors = [c for c in self._cursors if c.next_step <= weights.effective_step] or [self._start]

    def add_part(self, domain: int, num_rows: int, is_last: bool) -> None:
        """The next part of a streamed domain is known."""
        self._orders[domain].add_part(num_rows, is_last)

    def num_covered(self, first_step: int, max_steps: int = 1) -> int:
        """Of that many steps from `first_step` on, how many draw only rows of known parts."""
        most_D = np.array([order.num_known for order in self._orders])
        if np.isinf(most_D).all():
            return max_steps
        cursor, taken_SD = self._advance(self._cursor_before(first_step), max_steps)
        before_D = cursor.total_counts_D - taken_SD.sum(axis=0)
        are_covered_S = (before_D + np.cumsum(taken_SD, axis=0) <= most_D).all(axis=1)
        # Draws only grow, so the steps that are covered come first; `max_steps` may cross a version's end.
        return int(are_covered_S.sum())

    def find_lacking(self, step: int) -> int | None:
        """A streamed domain of which `step` draws rows of a part that is not known yet; None if there is none."""
        after, _ = self._advance(self._cursor_before(step), 1)
        most_D = np.array([order.num_known for order in self._orders])
        lacking = np.flatnonzero(after.total_counts_D > most_D)
        return int(lacking[0]) if len(lacking) else None

    @property
    def num_versions(self) -> int:
        return len(self._journal)

    def version_of(self, step: int) -> DomainWeights:
        for weights in reversed(self._journal):
            if weights.effective_step <= step:
                return weights
        raise ValueError(f"no weights version claims step {step}; steps are counted from 1")

    def rows(self, first_step: int, max_steps: int = 1) -> StepRows:
        """The rows of up to `max_steps` steps from `first_step` on; fewer if the version ends before.

        ValueError if some are in parts that are not known.
        """
        cursor, taken_SD = self._advance(self._cursor_before(first_step), max_steps)
        self._keep(cursor)
        return self._lay_out(cursor, taken_SD)

    def _cursor_before(self, step: int) -> _Cursor:
        cursor = next((c for c in reversed(self._cursors) if c.next_step <= step), self._start)
        while cursor.next_step < step:
            cursor, _ = self._advance(cursor, step - cursor.next_step)
        self._keep(cursor)
        return cursor

    def _keep(self, cursor: _Cursor) -> None:
        if cursor.next_step > self._cursors[-1].next_step:
            self._cursors = [*self._cursors[-_CURSORS_KEPT + 1 :], cursor]

    def _advance(self, cursor: _Cursor, max_steps: int) -> tuple[_Cursor, NDArray[np.int64]]:
        """The cursor after up to `max_steps` steps of one version, and the rows taken by step and domain, (S, D)."""
        weights = self.version_of(cursor.next_step)
        draws_per_step = self.rows_per_step // self.rows_per_draw
        if weights.version != cursor.version:
            shares_D = self.row_shares(weights)
            debt_D, carry_D = settle(cursor.owed_D, shares_D, draws_per_step)
            counts_D = np.zeros_like(cursor.version_counts_D)
            total_counts_D = cursor.total_counts_D
            cursor = _Cursor(cursor.next_step, weights.version, shares_D, debt_D, carry_D, counts_D, total_counts_D)
        num_steps = max_steps
        if later := self._journal[weights.version + 1 :]:
            num_steps = min(max_steps, later[0].effective_step - cursor.next_step)
        draws_SD = take_rows(cursor.carry_D, cursor.shares_D, draws_per_step, cursor.version_counts_D, num_steps)
        draws_D = draws_SD.sum(axis=0)
        after = replace(
            cursor,
            next_step=cursor.next_step + num_steps,
            version_counts_D=cursor.version_counts_D + draws_D,
            total_counts_D=cursor.total_counts_D + draws_D * self.rows_per_draw,
        )
        return after, draws_SD * self.rows_per_draw

    def row_shares(self, weights: DomainWeights) -> NDArray[np.float64]:
        """Shares of rows, (D,), that yield the version's shares of examples (or tokens)."""
        share_D = np.array([weights.shares[domain.name] / domain.units_per_row for domain in self.domains])
        return share_D / share_D.sum()

    def _lay_out(self, after: _Cursor, taken_SD: NDArray[np.int64]) -> StepRows:
        """Assign every row taken before `after` its id and its place in the global batch."""
        num_steps, num_domains = taken_SD.shape
        first_step = after.next_step - num_steps
        domain_N = np.repeat(np.tile(np.arange(num_domains), num_steps), taken_SD.ravel())
        # A domain's draws are numbered from 0 over the whole run; these are the ones after `before_D`.
        taken_D = taken_SD.sum(axis=0)
        before_D = after.total_counts_D - taken_D
        by_domain = np.argsort(domain_N, kind="stable")
        row_N = np.empty_like(domain_N)
        taken = np.flatnonzero(taken_D)
        row_N[by_domain] = np.concatenate([self._orders[d].rows(int(before_D[d]), int(taken_D[d])) for d in taken])
        keys = np.array([derive_key(self.seed, "step", first_step + s) for s in range(num_steps)], dtype=np.uint64)
        order_SB = permutations(keys, self.rows_per_step)
        return StepRows(
            first_step=first_step,
            weights_version=after.version,
            domain_SB=np.take_along_axis(domain_N.reshape(num_steps, -1), order_SB, axis=1),
            row_SB=np.take_along_axis(row_N.reshape(num_steps, -1), order_SB, axis=1),
            taken_SD=taken_SD,
            counts_SD=before_D + np.cumsum(taken_SD, axis=0),
        )
