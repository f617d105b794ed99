"""Schedule -> batches: the rows (sequences) of the coming steps are gathered ahead of time, never from an old mix.

A background thread gathers blocks of steps: one gather for many steps costs less than one for each. A block holds rows
of one weights version. If a new version claims steps that were already gathered, those blocks are dropped and built
again, so no batch of the old mix is ever returned.

Batches that are measured, not trained on, hold chosen rows, outside the schedule.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.contracts import DomainWeights
from workers.data.schedule import Schedule, StepRows
from workers.data.store import TokenStore

_BLOCK_BYTES = 8 * 2**20
_MAX_BLOCK_STEPS = 16
# Fresh memory costs more than the copy into it (page faults), so blocks are reused in turn: one is being returned, one
# is gathered ahead, one is gathered because the caller waits for it, one is held by the last batch.
_BUFFERS = 4
_FANCY_FROM = 8  # with fewer rows, copying one by one costs less than a fancy index


@dataclass(frozen=True)
class Batch:
    """One rank's slice of one step: B rows of at most L tokens, L being the longest row of the slice.

    The arrays by token are reused a few blocks later: copy them to keep a batch.
    """

    step: int
    weights_version: int
    input_ids_BL: NDArray[np.int32]
    position_ids_BL: NDArray[np.integer]
    loss_mask_BL: NDArray[np.bool_]
    domain_B: NDArray[np.int64]  # index into the run's domains
    row_B: NDArray[np.int64]  # row id in that domain's store; of a streamed domain, in all parts one after the other
    global_loss_tokens: int  # loss tokens of the step over all ranks: every rank's denominator
    global_tokens: int  # tokens of the step over all ranks
    global_rows_D: NDArray[np.int64]  # rows of each domain in the step, over all ranks
    domain_rows_seen_D: NDArray[np.int64]  # rows of each domain from step 1 through this step


class _Rows:
    """The rows of all stores, one after the other: the parts of the first domain, then those of the second."""

    def __init__(self, parts: Sequence[Sequence[TokenStore]]) -> None:
        stores = [store for of_domain in parts for store in of_domain]
        # Plain arrays: indexing an np.memmap costs microseconds of subclass handling.
        self._tokens = [[np.asarray(a) for a in (s.input_ids, s.position_ids, s.loss_mask)] for s in stores]
        self._ends = np.cumsum([len(store.row_lengths) for store in stores])
        num_rows_D = [sum(len(store.row_lengths) for store in of_domain) for of_domain in parts]
        self._start_D = np.cumsum([0, *num_rows_D[:-1]])
        self.lengths = np.concatenate([store.row_lengths for store in stores])
        self.loss_tokens = np.concatenate([store.row_loss_tokens for store in stores])

    def number(self, domain: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of rows of domains among all rows."""
        return self._start_D[domain] + row

    def copy(self, row_N: NDArray[np.int64], targets: Sequence[np.ndarray]) -> None:
        """Copy the tokens of rows, given by their places among all, into arrays (N, L) of ids, positions and mask."""
        for store, places in _group(np.searchsorted(self._ends, row_N, side="right")):
            tokens = self._tokens[store]
            rows = row_N[places] - (self._ends[store] - len(tokens[0]))
            for target, source in zip(targets, tokens, strict=True):
                _copy_rows(target, places, source, rows)


class BatchLoader:
    """Returns this rank's batch of every step, gathered a block of steps ahead by a thread.

    Args:
        stores: one per domain, in the order of the schedule's domains; of a streamed domain its first part.
        schedule: only the loader may announce versions to it.
        rank, world_size: which slice of the global batch to gather.
        horizon: number of steps after which the weights are expected to change; no block crosses that boundary.
    """

    def __init__(
        self, stores: Sequence[TokenStore], schedule: Schedule, rank: int, world_size: int, horizon: int
    ) -> None:
        if schedule.rows_per_step % world_size:
            raise ValueError(f"{schedule.rows_per_step} rows per step cannot be split over {world_size} ranks")
        self._parts = [[store] for store in stores]
        self._rows = _Rows(self._parts)
        self._schedule = schedule
        self._horizon = horizon
        rows = schedule.rows_per_step // world_size
        self._slice = slice(rank * rows, (rank + 1) * rows)
        self._max_length = max(store.max_length for store in stores)
        types = [stores[0].input_ids.dtype, stores[0].position_ids.dtype, stores[0].loss_mask.dtype]
        step_bytes = rows * self._max_length * sum(each.itemsize for each in types)
        self._block_steps = min(max(_BLOCK_BYTES // step_bytes, 1), _MAX_BLOCK_STEPS)
        shape = (self._block_steps, rows, self._max_length)
        self._buffers = deque([np.empty(shape, each) for each in types] for _ in range(_BUFFERS))
        self._lock = Lock()  # guards the schedule, its rows and the choice of a buffer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[Batch] = deque()
        self._ahead: Future[list[Batch]] | None = None  # the block behind `_ready`

    def announce(self, weights: DomainWeights) -> None:
        """Apply a version from its effective step on; gathered batches of the previous mix are dropped."""
        with self._lock:
            is_known = weights.version < self._schedule.num_versions
            self._schedule.announce(weights)
            if is_known:
                return
        while self._ready and self._ready[-1].step >= weights.effective_step:
            self._ready.pop()
        if self._ahead is not None:  # it may contain steps that the version claims; if it is running, it ends
            self._ahead.cancel()  # before its buffer is reused
            wait([self._ahead])
            self._ahead = None

    def find_lacking(self, step: int) -> int | None:
        """A streamed domain whose next part `step` needs, by its index; None if all rows of the step are there."""
        with self._lock:
            return self._schedule.find_lacking(step)

    def num_parts(self, domain: int) -> int:
        return len(self._parts[domain])

    def add_part(self, domain: int, store: TokenStore, is_last: bool) -> None:
        """The next part of a streamed domain; it may be empty."""
        with self._lock:
            self._parts[domain].append(store)
            self._rows = _Rows(self._parts)  # a new one: the thread may be reading from the old one
            self._schedule.add_part(domain, store.num_rows, is_last)

    def get(self, step: int) -> Batch:
        """The batch of a step, for which no domain is lacking a part. Steps are expected in order; a jump works too,
        but more slowly."""
        if not self._ready or self._ready[0].step != step:
            block = self._ahead.result() if self._ahead else []
            if not block or block[0].step != step:
                block = self._build(step, max_steps=1)  # not a whole block: the caller is waiting
            self._ready = deque(block)
            next_step = block[-1].step + 1
            is_across = (next_step - 1) % self._horizon == 0
            self._ahead = None if is_across else self._thread.submit(self._build, next_step, self._block_steps)
        return self._ready.popleft()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _build(self, first_step: int, max_steps: int) -> list[Batch]:
        """Batches from a step on; fewer if its weights end before, or its known rows, and so perhaps none."""
        with self._lock:
            to_horizon = self._horizon - (first_step - 1) % self._horizon
            num_steps = self._schedule.num_covered(first_step, min(max_steps, to_horizon))
            if num_steps == 0:
                return []
            steps, rows = self._schedule.rows(first_step, num_steps), self._rows
            self._buffers.rotate()
            buffer_SBL = self._buffers[0]
        return self._gather(steps, rows, [array[: steps.num_steps] for array in buffer_SBL])

    def _gather(self, steps: StepRows, rows: _Rows, arrays_SBL: list[np.ndarray]) -> list[Batch]:
        """Copy this rank's rows of all the steps, store by store, then cut the block into batches."""
        domain_SB, row_SB = steps.domain_SB[:, self._slice], steps.row_SB[:, self._slice]
        row_of_all_SB = rows.number(steps.domain_SB, steps.row_SB)
        targets = [array.reshape(-1, self._max_length) for array in arrays_SBL]
        rows.copy(row_of_all_SB[:, self._slice].ravel(), targets)
        # Of the whole global batch: known on every rank without asking the others.
        length_SB, loss_tokens_SB = rows.lengths[row_of_all_SB], rows.loss_tokens[row_of_all_SB]
        input_ids_SBL, position_ids_SBL, loss_mask_SBL = arrays_SBL
        longest_S = length_SB[:, self._slice].max(axis=1)
        return [
            Batch(
                step=steps.first_step + s,
                weights_version=steps.weights_version,
                input_ids_BL=input_ids_SBL[s, :, : longest_S[s]],
                position_ids_BL=position_ids_SBL[s, :, : longest_S[s]],
                loss_mask_BL=loss_mask_SBL[s, :, : longest_S[s]],
                domain_B=domain_SB[s],
                row_B=row_SB[s],
                global_loss_tokens=int(loss_tokens_SB[s].sum()),
                global_tokens=int(length_SB[s].sum()),
                global_rows_D=steps.taken_SD[s],
                domain_rows_seen_D=steps.counts_SD[s],
            )
            for s in range(steps.num_steps)
        ]


def _group(domain_N: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    order = np.argsort(domain_N, kind="stable")
    starts = np.flatnonzero(np.diff(domain_N[order], prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield int(domain_N[order[start]]), order[start:end]


def _copy_rows(target: np.ndarray, places: NDArray[np.int64], source: np.ndarray, rows: NDArray[np.int64]) -> None:
    if len(rows) >= _FANCY_FROM:
        target[places] = source[rows]
    else:
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            target[place] = source[row]


@dataclass(frozen=True)
class MeasuredRow:
    """L tokens that are measured as one sequence."""

    domain: int
    row: int
    input_ids_L: NDArray[Any]
    position_ids_L: NDArray[Any]
    loss_mask_L: NDArray[np.bool_]
    example_L: NDArray[np.int64]


def build_batch(stores: Sequence[TokenStore], rows: Sequence[tuple[int, int] | None]) -> Batch:
    """A batch of rows given as (index of the domain, row); None for one that only fills up the pass."""
    return collate([None if row is None else _store_row(stores[row[0]], *row) for row in rows], len(stores))[0]


def _store_row(store: TokenStore, domain: int, row: int) -> MeasuredRow:
    used = slice(int(store.row_lengths[row]))
    arrays = (store.input_ids[row, used], store.position_ids[row, used], store.loss_mask[row, used])
    return MeasuredRow(domain, row, *arrays, np.full(len(arrays[0]), -1, dtype=np.int64))


def collate(rows: Sequence[MeasuredRow | None], num_domains: int) -> tuple[Batch, NDArray[np.int64]]:
    """The rows as a batch, and the example of each token, (B, L), -1 for padding. None fills up the pass."""
    length = max((len(row.input_ids_L) for row in rows if row is not None), default=1)
    input_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    position_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    loss_mask_BL = np.zeros((len(rows), length), dtype=np.bool_)
    example_BL = np.full((len(rows), length), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        if row is not None:  # a row that only fills up the pass keeps an empty loss mask
            used = len(row.input_ids_L)
            input_ids_BL[i, :used] = row.input_ids_L
            position_ids_BL[i, :used] = row.position_ids_L
            loss_mask_BL[i, :used] = row.loss_mask_L
            example_BL[i, :used] = row.example_L
    batch = Batch(
        step=0,
        weights_version=0,
        input_ids_BL=input_ids_BL,
        position_ids_BL=position_ids_BL,
        loss_mask_BL=loss_mask_BL,
        domain_B=np.array([row.domain if row is not None else 0 for row in rows], dtype=np.int64),
        row_B=np.array([row.row if row is not None else 0 for row in rows], dtype=np.int64),
        global_loss_tokens=int(loss_mask_BL.sum()),
        global_tokens=0,
        global_rows_D=np.zeros(num_domains, dtype=np.int64),
        domain_rows_seen_D=np.zeros(num_domains, dtype=np.int64),
    )
    return batch, example_BL
