"""The held-out losses of a run: measured, compared with earlier evaluations, and kept for each example.

The loss of each example, over all ranks; sums and counts, divided last. The examples are a sample of the whole held-out
set (`held_out.py`), the same at every evaluation. All ranks run the same number of forward passes with the same number
of rows, because under ZeRO-3 every pass is a collective.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.contracts import Change
from workers.data.batches import Batch, MeasuredRow, collate
from workers.data.store import TokenStore
from workers.engine.collectives import on_rank_zero
from workers.events import log_event
from workers.validation.example_losses import EvaluationHistory, Losses, write_evaluation_json
from workers.validation.held_out import HeldOutSample, MaxRows, draw_sample
from workers.validation.loss_statistics import ExampleLosses, paired_difference

if TYPE_CHECKING:
    from workers.engine.engine import Engine


Samples = Mapping[str, HeldOutSample]


class LossMeter:
    """Measures every domain's sample of held-out examples; every method is a collective.

    Evaluations after `num_steps_done` are removed from the run's folder.
    """

    def __init__(
        self, engine: "Engine", stores: Mapping[str, TokenStore], max_rows: MaxRows, folder: Path, num_steps_done: int
    ) -> None:
        self._engine = engine
        self._folder = folder
        # Drawing reads every evaluation store completely, so one rank does it for all.
        self.samples = on_rank_zero(lambda: {name: draw_sample(store, max_rows) for name, store in stores.items()})
        place, rows_per_pass = (engine.data_rank, engine.num_data_ranks), engine.training.micro_batch_size
        self._batches = build_evaluation_batches(stores, self.samples, rows_per_pass, *place)
        self._history: EvaluationHistory = on_rank_zero(partial(_open_history, folder, num_steps_done))

    @property
    def batches(self) -> list[Batch]:
        return [part.batch for part in self._batches]

    def measure(self) -> Losses:
        return evaluate(self._engine, self._batches, self.samples)

    def describe(self, losses: Losses) -> dict[str, Any]:
        """The fields of the feedback on an evaluation; call before `record` makes it the newest."""
        known = {name: part for name, part in losses.items() if math.isfinite(part.standard_error)}
        return {
            "loss_sum_nats": {name: part.loss_sum_nats for name, part in losses.items()},
            "num_tokens": {name: part.num_tokens for name, part in losses.items()},
            "num_examples": {name: len(part.example_E) for name, part in losses.items()},
            "num_held_out": {name: part.num_held_out for name, part in losses.items()},
            "standard_error_nats": {name: part.standard_error for name, part in known.items()},
            "sampling_error_nats": {name: part.sampling_error for name, part in known.items()},
            "change_from_first": _changes(losses, self._history.first),
            "change_from_previous": _changes(losses, self._history.newest),
        }

    def record(self, step: int, losses: Losses) -> None:
        """Keep an evaluation, with which the next one is compared."""
        on_rank_zero(partial(self._history.write, step, losses))
        self._history.remember(step, losses)

    def write_last(self, step: int) -> None:
        """Write evaluation.json of the evaluation after the last step, measuring again if it was not recorded."""
        losses = self._history.newest
        if losses is None or self._history.newest_step != step:
            losses = self.measure()
            self.record(step, losses)
        on_rank_zero(partial(write_evaluation_json, self._folder / "evaluation.json", self.samples, losses))


def _open_history(folder: Path, num_steps_done: int) -> EvaluationHistory:
    history = EvaluationHistory(folder, num_steps_done)
    if num_steps_done > 0 and history.newest is None:
        message = (
            "the evaluations so far were made by an older version of raymix, which kept no losses of examples and "
            "measured the first rows of each store: losses may jump here, and differences from step 0 have no error"
        )
        log_event(folder, num_steps_done, "evaluation", message)
    return history


def _changes(losses: Losses, earlier: Losses | None) -> dict[str, Change]:
    """By domain, the difference from an earlier evaluation; domains without one are left out."""
    if earlier is None:
        return {}
    differences = {name: paired_difference(losses[name], earlier[name]) for name in losses if name in earlier}
    return {
        name: Change(nats=nats, standard_error=error)
        for name, (nats, error) in differences.items()
        if math.isfinite(nats) and math.isfinite(error)
    }


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch to measure, and the example of each token."""

    batch: Batch
    example_BL: NDArray[np.int64]  # number of the example over all domains, domain by domain; -1 for padding


def build_evaluation_batches(
    stores: Mapping[str, TokenStore], samples: Samples, micro_batch_size: int, rank: int, world_size: int
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


def evaluate(engine: "Engine", batches: Sequence[EvaluationBatch], samples: Samples) -> dict[str, ExampleLosses]:
    """The loss of every example of every domain, measured by all ranks together; a collective.

    Each example is measured by one rank, or by those that have its slices, and the others add zeros: the sums do not
    depend on the number of ranks.
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


def _first_examples(samples: Samples) -> NDArray[np.int64]:
    """Number of each domain's first example over all domains, then the total; (D + 1,)."""
    return np.cumsum([0, *(len(sample.example_E) for sample in samples.values())])


def _sampled_row(store: TokenStore, sample: HeldOutSample, domain: int, row: int, first_example: int) -> MeasuredRow:
    examples = sample.packing.examples[sample.packing.offsets[row] : sample.packing.offsets[row + 1]]
    pieces = [(sample.row_E[e], slice(sample.start_E[e], sample.start_E[e] + sample.length_E[e])) for e in examples]
    arrays = (store.input_ids, store.position_ids, store.loss_mask)
    tokens = [np.concatenate([array[place] for place in pieces]) for array in arrays]
    example_L = np.repeat(first_example + examples, sample.length_E[examples])
    return MeasuredRow(domain, row, tokens[0], tokens[1], tokens[2], example_L)
