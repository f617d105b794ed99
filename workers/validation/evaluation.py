"""Evaluation by domain: the loss of each held-out example, over all ranks; sums and counts, divided last.

The examples are a sample of the whole held-out set (`held_out.py`), the same at every evaluation. All ranks run the
same number of forward passes with the same number of rows, because under ZeRO-3 every pass is a collective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.data.batches import Batch
from workers.data.measured_batches import MeasuredRow, collate
from workers.data.store import TokenStore
from workers.validation.held_out import HeldOutSample
from workers.validation.loss_statistics import ExampleLosses

if TYPE_CHECKING:
    from workers.engine.engine import Engine


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch to measure, and the example of each token."""

    batch: Batch
    example_BL: NDArray[np.int64]  # number of the example over all domains, domain by domain; -1 for padding


def build_evaluation_batches(
    stores: Mapping[str, TokenStore],
    samples: Mapping[str, HeldOutSample],
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> list[EvaluationBatch]:
    """This rank's batches of an evaluation, built once and measured many times.

    Rows of all domains are sorted by length, so that batches have little padding and ranks take equally long.
    """
    rows = [(domain, row) for domain, s in enumerate(samples.values()) for row in range(s.packing.num_rows)]
    lengths = np.concatenate([sample.row_lengths for sample in samples.values()])
    ordered: list[tuple[int, int] | None] = [rows[i] for i in np.argsort(-lengths, kind="stable")]
    rows_per_pass = micro_batch_size * world_size
    ordered += [None] * (-len(ordered) % rows_per_pass)
    parts = [(stores[name], sample) for name, sample in samples.items()]
    firsts_D = _first_examples(samples)

    def gather(row: tuple[int, int] | None) -> MeasuredRow | None:
        return None if row is None else _sampled_row(*parts[row[0]], *row, int(firsts_D[row[0]]))

    return [
        EvaluationBatch(*collate([gather(row) for row in ordered[start : start + micro_batch_size]], len(parts)))
        for start in range(rank * micro_batch_size, len(ordered), rows_per_pass)
    ]


def evaluate(
    engine: "Engine", batches: Sequence[EvaluationBatch], samples: Mapping[str, HeldOutSample]
) -> dict[str, ExampleLosses]:
    """The loss of every example of every domain, measured by all ranks together; a collective.

    Each example is measured by one rank and the others add zeros, so the sums do not depend on the number of ranks.
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


def _first_examples(samples: Mapping[str, HeldOutSample]) -> NDArray[np.int64]:
    """Number of each domain's first example over all domains, then the total; (D + 1,)."""
    return np.cumsum([0, *(len(sample.example_E) for sample in samples.values())])


def _sampled_row(store: TokenStore, sample: HeldOutSample, domain: int, row: int, first_example: int) -> MeasuredRow:
    examples = sample.packing.examples[sample.packing.offsets[row] : sample.packing.offsets[row + 1]]
    pieces = [(sample.row_E[e], slice(sample.start_E[e], sample.start_E[e] + sample.length_E[e])) for e in examples]
    arrays = (store.input_ids, store.position_ids, store.loss_mask)
    tokens = [np.concatenate([array[place] for place in pieces]) for array in arrays]
    example_L = np.repeat(first_example + examples, sample.length_E[examples])
    return MeasuredRow(domain, row, tokens[0], tokens[1], tokens[2], example_L)
