"""Measuring signals on all ranks: one forward pass for each drawn batch of examples, one reduction for all signals.

The examples are whole rows of the training stores, different ones at each evaluation. A pool of each domain's rows
follows from (seed, domain) and is divided into batches once. An evaluation draws batches by (seed, domain, step) until
it has enough examples, and a batch is measured whole or not at all. So the base model's losses can be measured in
advance for the whole pool, and the same model reproduces them bit for bit: other neighbours in a batch, or other
padding, would change the rounding. Every example of a packed row counts. They are measured before step 1 and kept as
`signals/base_nats.json` in the run's folder, so that a resumed run compares with the same numbers.

Shapes: B rows, L tokens, S examples of a batch, N loss tokens, T tokens, H hidden size.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.bounded import MAX_EXAMPLES_BYTES, read_object
from workers.data.batches import build_batch
from workers.data.permutation import derive_key, permutation
from workers.data.store import TokenStore
from workers.durable import write_durably
from workers.engine.collectives import on_rank_zero
from workers.events import log_event
from workers.fingerprint import fingerprint
from workers.signals import MeasuredExamples, build_signal
from workers.signals.examples import Array, Span

if TYPE_CHECKING:
    from workers.engine.engine import Engine

_POOL_EVALUATIONS = 8  # examples in the pool, as a multiple of those of one evaluation


@dataclass(frozen=True)
class PoolBatch:
    """Some rows of one domain, always measured together."""

    domain: int
    rows: tuple[int, ...]
    first_example: int  # number of its first example within the whole pool
    num_examples: int
    num_tokens: int


class SignalPool:
    """Batches of every trained domain; the same on all ranks and in all attempts.

    An evaluation draws `num_examples` of each domain, or all of a domain that has fewer.
    """

    def __init__(self, stores: Mapping[str, TokenStore], seed: int, num_examples: int, micro_batch_size: int) -> None:
        self.names = list(stores)
        self.stores = list(stores.values())
        self.batches: list[PoolBatch] = []
        self.num_examples = 0
        self._seed = seed
        self._num_wanted = num_examples
        for domain, name in enumerate(self.names):
            order_R = permutation(derive_key("signal pool", seed, name), stores[name].num_rows)
            self._add(domain, order_R, micro_batch_size)

    def draw(self, step: int) -> list[PoolBatch]:
        """The batches of the evaluation after `step` steps, in descending order of tokens."""
        drawn = []
        for domain, name in enumerate(self.names):
            batches = [batch for batch in self.batches if batch.domain == domain]
            num_drawn = 0
            for index in permutation(derive_key("signal draw", self._seed, name, step), len(batches)):
                if num_drawn < self._num_wanted:
                    drawn.append(batches[index])
                    num_drawn += batches[index].num_examples
        return sorted(drawn, key=lambda batch: -batch.num_tokens)

    @property
    def digest(self) -> str:
        """Changes whenever an example, its number or its batch changes."""
        content = [[store.fingerprint for store in self.stores], [(b.domain, b.rows) for b in self.batches]]
        return fingerprint(content, num_bytes=16)

    def _add(self, domain: int, order_R: NDArray[np.int64], micro_batch_size: int) -> None:
        store = self.stores[domain]
        examples_R = np.cumsum(store.row_examples[order_R])
        pool = order_R[: 1 + int(np.searchsorted(examples_R, _POOL_EVALUATIONS * self._num_wanted))].tolist()
        # No more rows than an evaluation needs: packed, a micro batch may hold several times as many examples.
        num_rows = min(micro_batch_size, math.ceil(self._num_wanted * store.num_rows / store.num_examples))
        for start in range(0, len(pool), num_rows):
            rows = pool[start : start + num_rows]
            num_examples = int(store.row_examples[rows].sum())
            num_tokens = int(store.row_lengths[rows].sum())
            self.batches.append(PoolBatch(domain, tuple(rows), self.num_examples, num_examples, num_tokens))
            self.num_examples += num_examples


def number_examples(position_ids_BL: NDArray[np.integer], row_lengths_B: NDArray[np.integer]) -> NDArray[np.int64]:
    """The example of each token, counted from 0 over all rows, (B, L); -1 for padding.

    An example begins where positions restart.
    """
    is_used_BL = np.arange(position_ids_BL.shape[1]) < np.asarray(row_lengths_B)[:, None]
    starts_BL = is_used_BL & (position_ids_BL == 0)
    number_BL = np.cumsum(starts_BL.ravel()).reshape(starts_BL.shape) - 1
    return np.where(is_used_BL, number_BL, -1)


@dataclass(frozen=True)
class _MeasuredBatch:
    mean_hidden_SH: Array
    nats_sum_S: dict[Span, Array]
    num_targets_S: dict[Span, NDArray[np.int64]]


class SignalMeter:
    """Measures the named signals; every method is a collective. ValueError if a signal is unknown, or the base model's
    numbers are missing although training has begun."""

    def __init__(
        self, signals: Sequence[str], pool: SignalPool, engine: "Engine", run_folder: Path, num_steps_done: int
    ) -> None:
        self._signals = {name: build_signal(name, pool.names) for name in signals}
        self._pool = pool
        self._engine = engine
        base_spans = {signal.base_span for signal in self._signals.values()}
        self._spans: list[Span] = [span for span in ("response", "sequence") if span in base_spans]
        self._base_nats: dict[Span, Array] = {}
        if self._spans:
            self._base_nats = self._load_base(run_folder, num_steps_done)

    def measure(self, step: int) -> dict[str, dict[str, float]]:
        """Signal, domain, value after `step` optimizer steps; the same on all ranks."""
        examples = self._measure(step)
        parts = [signal.sums(examples) for signal in self._signals.values()]
        reduced = self._sum_over_ranks(np.concatenate([part.ravel() for part in parts]))
        ends = np.cumsum([part.size for part in parts])
        values = {}
        for (name, signal), part, flat in zip(self._signals.items(), parts, np.split(reduced, ends[:-1]), strict=True):
            of_domain = signal.values(flat.reshape(part.shape)).tolist()
            values[name] = dict(zip(self._pool.names, of_domain, strict=True))
        return values

    def _measure(self, step: int) -> MeasuredExamples:
        batches, measured = zip(*self._pass_over(self._pool.draw(step)), strict=True)
        number_E = np.concatenate([np.arange(b.first_example, b.first_example + b.num_examples) for b in batches])
        return MeasuredExamples(
            num_domains=len(self._pool.names),
            domain_E=np.repeat([b.domain for b in batches], [b.num_examples for b in batches]),
            mean_hidden_EH=np.concatenate([m.mean_hidden_SH for m in measured]),
            nats_sum_E={span: np.concatenate([m.nats_sum_S[span] for m in measured]) for span in self._spans},
            base_nats_sum_E={span: nats[number_E] for span, nats in self._base_nats.items()},
            num_targets_E={span: np.concatenate([m.num_targets_S[span] for m in measured]) for span in self._spans},
        )

    def _pass_over(self, batches: list[PoolBatch]) -> Iterator[tuple[PoolBatch, _MeasuredBatch]]:
        """This rank's batches, measured; those that only keep it in step with the others have no examples.

        All ranks make the same number of passes: under ZeRO-3 each pass is a collective.
        """
        rank, num_ranks, slices = self._engine.data_rank, self._engine.num_data_ranks, self._engine.slices
        mine = batches[rank::num_ranks]
        counts = slices is None or slices.index == 0  # all ranks of a sequence measure all of it
        for batch in mine if counts else ():
            yield batch, self._measure_batch(batch)
        idle = [batches[0]] * (math.ceil(len(batches) / num_ranks) - len(mine))
        for batch in idle if counts else [*mine, *idle]:
            yield replace(batch, num_examples=0), self._measure_batch(batch, kept=slice(0))

    def _measure_batch(self, batch: PoolBatch, kept: slice = slice(None)) -> _MeasuredBatch:
        tokens = build_batch(self._pool.stores, [(batch.domain, row) for row in batch.rows])
        row_lengths_B = self._pool.stores[batch.domain].row_lengths[list(batch.rows)]
        example_BL = number_examples(tokens.position_ids_BL, row_lengths_B)
        masks: dict[Span, NDArray[np.bool_]] = {
            "response": tokens.loss_mask_BL,
            "sequence": (example_BL >= 0) & (tokens.position_ids_BL > 0),
        }
        counted_BL = masks["sequence" if "sequence" in self._spans else "response"]
        nats_N, hidden_BLH = self._engine.forward_tokens(replace(tokens, loss_mask_BL=counted_BL))
        row_N, column_N = np.nonzero(counted_BL[:, 1:])
        example_N, nats = example_BL[row_N, column_N + 1], nats_N.double().cpu().numpy()
        nats_sum_S: dict[Span, Array] = {}
        num_targets_S: dict[Span, NDArray[np.int64]] = {}
        for span in self._spans:
            is_in_N = masks[span][row_N, column_N + 1]
            sums_S = np.bincount(example_N[is_in_N], weights=nats[is_in_N], minlength=batch.num_examples)
            nats_sum_S[span] = sums_S.astype(np.float64)[kept]
            num_targets_S[span] = np.bincount(example_N[is_in_N], minlength=batch.num_examples)[kept]
        mean_hidden_SH = _mean_by_example(hidden_BLH, example_BL, batch.num_examples)[kept]
        return _MeasuredBatch(mean_hidden_SH, nats_sum_S, num_targets_S)

    def _load_base(self, run_folder: Path, num_steps_done: int) -> dict[Span, Array]:
        """The base model's loss on each example of the pool: read, or measured before the first step."""
        path = run_folder / "signals" / "base_nats.json"
        found = on_rank_zero(lambda: _read_base(path, self._pool.digest, self._spans))
        if found is not None:
            return {span: np.array(nats, dtype=np.float64) for span, nats in found.items()}
        if num_steps_done > 0:
            raise ValueError(
                f"{path}: the base model's losses are missing, and after {num_steps_done} steps they can no longer be "
                "measured; restore the file, or start again under another name"
            )
        began = time.perf_counter()
        base = self._measure_base()
        on_rank_zero(lambda: _write_base(path, self._pool.digest, base))
        seconds = time.perf_counter() - began
        if self._engine.rank == 0:
            what = f"the base model's losses on {self._pool.num_examples} examples took {seconds:.1f} s"
            log_event(run_folder, 0, "signals", what)
        return base

    def _measure_base(self) -> dict[Span, Array]:
        nats_sum: dict[Span, Array] = {span: np.zeros(self._pool.num_examples) for span in self._spans}
        for batch, measured in self._pass_over(self._pool.batches):
            for span in self._spans:
                nats_sum[span][batch.first_example :][: batch.num_examples] = measured.nats_sum_S[span]
        reduced = self._sum_over_ranks(np.concatenate([nats_sum[span] for span in self._spans]))
        return dict(zip(self._spans, np.split(reduced, len(self._spans)), strict=True))

    def _sum_over_ranks(self, values: Array) -> Array:
        total = torch.from_numpy(values).to(self._engine.device)
        dist.all_reduce(total)
        return total.cpu().numpy()


def _mean_by_example(hidden_BLH: torch.Tensor, example_BL: NDArray[np.int64], num_examples: int) -> Array:
    """Mean hidden state of each example, (S, H), summed in float32."""
    flat_T = np.flatnonzero(example_BL >= 0)
    example_T = example_BL.ravel()[flat_T]
    where_T, which_T = (torch.from_numpy(index).to(hidden_BLH.device) for index in (flat_T, example_T))
    hidden_TH = hidden_BLH.flatten(0, 1).index_select(0, where_T).float()
    sum_SH = torch.zeros(num_examples, hidden_TH.shape[1], device=hidden_TH.device).index_add_(0, which_T, hidden_TH)
    return sum_SH.double().cpu().numpy() / np.bincount(example_T, minlength=num_examples)[:, None]


def _read_base(path: Path, digest: str, spans: list[Span]) -> dict[Span, list[float]] | None:
    if not path.exists():
        return None
    content = read_object(path, MAX_EXAMPLES_BYTES)
    if content["pool"] != digest or set(content["nats_sum"]) != set(spans):
        raise ValueError(f"{path}: it is for other examples than this run's; start again under another name")
    return {span: [math.nan if x is None else x for x in content["nats_sum"][span]] for span in spans}


def _write_base(path: Path, digest: str, nats_sum: dict[Span, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {span: [x if math.isfinite(x) else None for x in nats.tolist()] for span, nats in nats_sum.items()}
    write_durably(path, json.dumps({"pool": digest, "nats_sum": plain}).encode())
