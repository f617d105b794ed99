"""Measuring signals on all ranks: one forward pass for each drawn batch, one reduction for all signals.

The base model's losses on the pool are measured before step 1 and kept as `signals/base_nats.json` in the run's folder,
so that a resumed run compares with the same numbers.

Shapes: B rows, L tokens, S examples of a batch, N loss tokens, T tokens, H hidden size.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.data.batches import build_batch
from workers.durable import write_durably
from workers.engine.collectives import on_rank_zero
from workers.events import log_event
from workers.signals import MeasuredExamples, build_signal
from workers.signals.examples import Array, Span
from workers.signals.pool import PoolBatch, SignalPool, number_examples

if TYPE_CHECKING:
    from workers.engine.engine import Engine


@dataclass(frozen=True)
class _MeasuredBatch:
    mean_hidden_SH: Array
    nats_sum_S: dict[Span, Array]
    num_targets_S: dict[Span, NDArray[np.int64]]

    def without_examples(self) -> "_MeasuredBatch":
        nats_sum_S = {span: nats[:0] for span, nats in self.nats_sum_S.items()}
        num_targets_S = {span: count[:0] for span, count in self.num_targets_S.items()}
        return _MeasuredBatch(self.mean_hidden_SH[:0], nats_sum_S, num_targets_S)


class SignalMeter:
    """Measures the named signals; every method is a collective.

    Raises:
        ValueError: a signal is unknown, or the base model's numbers are missing although training has begun.
    """

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
        rank, world_size = self._engine.rank, self._engine.world_size
        mine = batches[rank::world_size]
        for batch in mine:
            yield batch, self._measure_batch(batch)
        for _ in range(math.ceil(len(batches) / world_size) - len(mine)):
            yield replace(batches[0], num_examples=0), self._measure_batch(batches[0]).without_examples()

    def _measure_batch(self, batch: PoolBatch) -> _MeasuredBatch:
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
            nats_sum_S[span] = sums_S.astype(np.float64)
            num_targets_S[span] = np.bincount(example_N[is_in_N], minlength=batch.num_examples)
        return _MeasuredBatch(_mean_by_example(hidden_BLH, example_BL, batch.num_examples), nats_sum_S, num_targets_S)

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
    content = json.loads(path.read_text())
    if content["pool"] != digest or set(content["nats_sum"]) != set(spans):
        raise ValueError(f"{path}: it is for other examples than this run's; start again under another name")
    return {span: [math.nan if x is None else x for x in content["nats_sum"][span]] for span in spans}


def _write_base(path: Path, digest: str, nats_sum: dict[Span, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {span: [x if math.isfinite(x) else None for x in nats.tolist()] for span, nats in nats_sum.items()}
    write_durably(path, json.dumps({"pool": digest, "nats_sum": plain}).encode())
