"""The held-out losses of a run: measured, compared with earlier evaluations, and kept for each example."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist

from workers.contracts import Change
from workers.data.batches import Batch
from workers.data.store import TokenStore
from workers.engine.collectives import on_rank_zero
from workers.events import log_event
from workers.validation.evaluation import build_evaluation_batches, evaluate
from workers.validation.example_losses import EvaluationHistory, Losses, write_evaluation_json
from workers.validation.held_out import draw_sample
from workers.validation.loss_statistics import paired_difference

if TYPE_CHECKING:
    from workers.engine.engine import Engine


class LossMeter:
    """Measures every domain's sample of held-out examples; every method is a collective.

    Evaluations after `num_steps_done` are removed from the run's folder.
    """

    def __init__(
        self,
        engine: "Engine",
        stores: Mapping[str, TokenStore],
        max_rows: int | Literal["all"],
        folder: Path,
        num_steps_done: int,
    ) -> None:
        self._engine = engine
        self._folder = folder
        # Drawing reads every evaluation store completely, so one rank does it for all.
        self.samples = on_rank_zero(lambda: {name: draw_sample(store, max_rows) for name, store in stores.items()})
        micro_batch_size = engine.training.micro_batch_size
        self._batches = build_evaluation_batches(
            stores, self.samples, micro_batch_size, dist.get_rank(), dist.get_world_size()
        )
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
