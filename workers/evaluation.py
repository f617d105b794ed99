"""Per-domain evaluation: what each held-out example loses, over all ranks; sums and counts, divided last.

The examples are a sample of the whole held-out set (`workers.held_out`), the same at every evaluation. All ranks run
the same number of forward passes of the same number of rows, because under ZeRO-3 every pass is a collective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.data.batches import Batch
from workers.data.store import TokenStore
from workers.held_out import HeldOutSample
from workers.loss_statistics import ExampleLosses

if TYPE_CHECKING:
    from workers.engine import Engine


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch to be measured, and whose its tokens are."""

    batch: Batch
    example_BL: NDArray[np.int64]
    """Number of the example among those of all domains, domain after domain; -1 where padded."""


def build_evaluation_batches(
    stores: Mapping[str, TokenStore],
    samples: Mapping[str, HeldOutSample],
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> list[EvaluationBatch]:
    """This rank's batches of one evaluation, to be built once and measured many times.

    Rows of all domains are sorted by length, so that a batch holds little padding and ranks work equally long.
    """
    rows = [(domain, row) for domain, s in enumerate(samples.values()) for row in range(s.packing.num_rows)]
    lengths = np.concatenate([sample.row_lengths for sample in samples.values()])
    ordered: list[tuple[int, int] | None] = [rows[i] for i in np.argsort(-lengths, kind="stable")]
    rows_per_pass = micro_batch_size * world_size
    ordered += [None] * (-len(ordered) % rows_per_pass)
    parts = [(stores[name], sample) for name, sample in samples.items()]
    firsts_D = _first_examples(samples)

    def gather(row: tuple[int, int] | None) -> "_Row | None":
        return None if row is None else _sampled_row(*parts[row[0]], *row, int(firsts_D[row[0]]))

    return [
        _build_batch([gather(row) for row in ordered[start : start + micro_batch_size]], len(parts))
        for start in range(rank * micro_batch_size, len(ordered), rows_per_pass)
    ]


def evaluate(
    engine: "Engine", batches: Sequence[EvaluationBatch], samples: Mapping[str, HeldOutSample]
) -> dict[str, ExampleLosses]:
    """What every example of every domain loses, measured by all ranks together; a collective.

    Each example is measured by one rank and the others add zeros, so that the sums do not depend on their number.
    """
    firsts = _first_examples(samples)
    num_examples = int(firsts[-1])
    loss_sum_E = torch.zeros(num_examples, dtype=torch.float64, device=engine.device)
    for batch in batches:
        loss_sum_E += engine.forward_examples(batch.batch, batch.example_BL, num_examples)
    dist.all_reduce(loss_sum_E)
    parts = np.split(loss_sum_E.cpu().numpy(), firsts[1:-1])
    return {
        name: ExampleLosses(sample.example_E, part_E, sample.num_tokens_E, sample.num_held_out)
        for (name, sample), part_E in zip(samples.items(), parts, strict=True)
    }


def build_batch(stores: Sequence[TokenStore], rows: Sequence[tuple[int, int] | None]) -> Batch:
    """Rows of stores, as (index of the domain, row), to be measured; None for one that only fills up the pass."""
    return _build_batch([None if row is None else _store_row(stores[row[0]], *row) for row in rows], len(stores)).batch


@dataclass(frozen=True)
class _Row:
    """L tokens that are measured as one row."""

    domain: int
    row: int
    input_ids_L: NDArray[Any]
    position_ids_L: NDArray[Any]
    loss_mask_L: NDArray[np.bool_]
    example_L: NDArray[np.int64]


def _store_row(store: TokenStore, domain: int, row: int) -> _Row:
    used = slice(int(store.row_lengths[row]))
    arrays = (store.input_ids[row, used], store.position_ids[row, used], store.loss_mask[row, used])
    return _Row(domain, row, *arrays, np.full(len(arrays[0]), -1, dtype=np.int64))


def _first_examples(samples: Mapping[str, HeldOutSample]) -> NDArray[np.int64]:
    """Number of each domain's first example among those of all, and how many there are; (D + 1,)."""
    return np.cumsum([0, *(len(sample.example_E) for sample in samples.values())])


def _sampled_row(store: TokenStore, sample: HeldOutSample, domain: int, row: int, first_example: int) -> _Row:
    examples = sample.packing.examples[sample.packing.offsets[row] : sample.packing.offsets[row + 1]]
    pieces = [(sample.row_E[e], slice(sample.start_E[e], sample.start_E[e] + sample.length_E[e])) for e in examples]
    arrays = (store.input_ids, store.position_ids, store.loss_mask)
    tokens = [np.concatenate([array[place] for place in pieces]) for array in arrays]
    example_L = np.repeat(first_example + examples, sample.length_E[examples])
    return _Row(domain, row, tokens[0], tokens[1], tokens[2], example_L)


def _build_batch(rows: Sequence[_Row | None], num_domains: int) -> EvaluationBatch:
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
    return EvaluationBatch(batch, example_BL)
