"""One rank's part in one attempt at a run: its state, and the steps of the loop.

All ranks call the same methods in the same order; each method is a collective.
"""

import json
import math
import time
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from workers.clock import utc_now
from workers.contracts import DomainFeedback, WeightsSource
from workers.data.batches import Batch, BatchLoader
from workers.data.end_of_turn import taught_end
from workers.data.store import TokenStore
from workers.durable import remove_folder, write_durably
from workers.engine import checkpoint
from workers.engine.checkpoint_writer import CheckpointWriter, remove_best
from workers.engine.collectives import on_rank_zero, sum_losses_over_ranks, sum_over_ranks
from workers.engine.engine import Engine
from workers.engine.optimizer import learning_rate
from workers.engine.stored_tensors import StoredTensors
from workers.events import log_event
from workers.export import KeptModel, export_model, held_out_examples, verification_loss
from workers.model.isolation import find_proof_row
from workers.model.tokenizer import load_tokenizer
from workers.signals.meter import SignalMeter, SignalPool
from workers.strategy import Attachment
from workers.training.failures import NonFiniteLossError, StreamError, refuse_start
from workers.training.plan import TrainingPlan
from workers.training.progress import ProgressMeter
from workers.training.run_lines import join_run
from workers.training.step_log import StepLog
from workers.training.streams import Streams
from workers.training.weights_source import BroadcastWeightsSource
from workers.validation.best import Best, better, with_start
from workers.validation.loss_meter import LossMeter


class Trainer:
    """Built from the plan, at the newest complete checkpoint or at the base model."""

    def __init__(self, plan: TrainingPlan, source: WeightsSource, meter: ProgressMeter) -> None:
        self.plan = plan
        self.meter = meter
        meter.enter("loading the model", 0)
        self.names = list(plan.domains)
        train_stores, eval_stores = plan.open_stores()
        self.trained = list(train_stores)
        self._train_stores = list(train_stores.values())
        self._checkpoints = plan.folder / "checkpoints"
        self._lines = join_run(plan)
        self.engine = Engine.build(plan.start.model if plan.start else plan.model, plan.training, plan.seed)
        keep = plan.training.keep_checkpoints
        self._writer = CheckpointWriter(self.engine, self._checkpoints, keep, self._lines.publish)
        self.source = BroadcastWeightsSource(source, self.engine.device)
        self.attempt = self.source.open_attempt()
        self.num_steps_done, self.best = self._restore()
        meter.enter("preparing", self.num_steps_done)
        self._prove_isolation(train_stores, eval_stores)
        micro_batch_size, max_rows = plan.training.micro_batch_size, plan.evaluation.max_rows
        self.loss_meter = LossMeter(self.engine, eval_stores, max_rows, plan.folder, self.num_steps_done)
        self.signal_meter: SignalMeter | None = None
        if plan.signals:
            pool = SignalPool(train_stores, plan.seed, plan.evaluation.signal_examples, micro_batch_size)
            self.signal_meter = SignalMeter(plan.signals, pool, self.engine, plan.folder, self.num_steps_done)
        schedule = plan.build_schedule(train_stores)
        place = (self.engine.data_rank, self.engine.num_data_ranks)
        self.loader = BatchLoader(list(train_stores.values()), schedule, *place, plan.evaluation.every)
        self.streams = Streams(plan, train_stores, self.loader, meter, self.num_steps_done)
        slices = plan.training.sequence_parallel
        self.log = StepLog(plan.folder, self.num_steps_done, self.streams.row_counts, plan.log_samples, slices)
        self.weights_version = 0
        self._last_saved = self.num_steps_done
        self._is_best = False
        self._step_began = 0.0
        meter.follow(self.engine.module)

    def follow_history(self) -> None:
        """Apply every version of the journal from its effective step on."""
        for weights in self.source.history():
            self.loader.announce(weights)

    def follow_weights(self, step: int) -> bool:
        """Apply the controller's version for `step`; the step's time counts from here. False: stop before this step."""
        self.meter.enter("waiting for the weights", step)
        self._step_began = time.perf_counter()
        weights = self.source.pull(step)
        if weights is None:
            return False
        if weights.version > self.weights_version + 1:  # the user requested several changes since
            self.follow_history()
        self.loader.announce(weights)
        self.weights_version = weights.version
        return True

    def reach_rows(self, step: int) -> None:
        """Have the rows of a step, also of streamed domains; StreamError, after a checkpoint, if they cannot be had."""
        try:
            self.streams.reach(step)
        except StreamError as error:
            if dist.get_rank() == 0:
                log_event(self.plan.folder, step, "streaming", str(error))
            self.save(step - 1, is_due=True)
            self.commit_checkpoint(wait=True)
            self.export_best()
            self.streams.close()
            raise

    def train_step(self, step: int) -> None:
        """One optimizer step; NonFiniteLossError, with nothing updated, if a loss or the gradient is not finite."""
        self.meter.enter("training", step)
        batch = self.loader.get(step)
        local_sum_D, local_tokens_D = self.engine.forward_backward(batch, len(self.trained))
        loss_sum_D, num_tokens_D = sum_losses_over_ranks(local_sum_D, local_tokens_D)
        self._refuse_non_finite(batch, loss_sum_D, local_sum_D.tolist())
        rate = learning_rate(step, self.plan.num_steps, self.plan.training)
        watched = self._watch(step)
        grad_norm = self.engine.step(rate)
        if not math.isfinite(grad_norm):
            raise self._diverged(
                step,
                f"step {step}: the gradient norm is {grad_norm}, although every loss is finite; nothing was updated; "
                "lower training.learning_rate, or inspect the rows of this step",
            )
        seconds = time.perf_counter() - self._step_began
        self.meter.end_step(seconds)
        speed = batch.global_tokens / seconds
        values = {"tokens_per_second": speed, "learning_rate": rate, "grad_norm": grad_norm, "seconds": seconds}
        if self.engine.router_loss is not None:
            values["router_loss"] = sum_over_ranks(self.engine.router_loss_sum, self.engine.device)
        self.log.write(batch, loss_sum_D, num_tokens_D, values | (watched.observations() if watched else {}))

    def measure(self, step: int) -> None:
        """Evaluate every domain after `step` steps, push the results, and note whether the model is the best so far;
        NonFiniteLossError if, at step 0, a loss of the model that training starts from is not finite."""
        self.meter.enter("evaluating", step)
        began = time.perf_counter()
        losses = self.loss_meter.measure()
        if step == 0:
            refuse_start({name: part.loss_sum_nats for name, part in losses.items()})
        evaluated = time.perf_counter()
        signals = self.signal_meter.measure(step) if self.signal_meter else {}
        feedback = DomainFeedback(
            run_id=self.plan.run_id,
            attempt=self.attempt,
            step=step,
            weights_version=self.weights_version,
            **self.loss_meter.describe(losses),
            signals=signals,
            evaluation_seconds=evaluated - began,
            signal_seconds=time.perf_counter() - evaluated if signals else 0.0,
            time=utc_now(),
        )
        self.meter.enter("pushing the evaluation", step)
        # Push first: an attempt that was fenced out fails here, before it overwrites files of the attempt that replaced
        # it. The best model comes last: it is chosen again if the run resumes before it is on disk.
        self.loader.announce(self.source.push(feedback))
        self.loss_meter.record(step, losses)
        if (criterion := self.plan.evaluation.best) is None:
            return
        before, self.best = self.best, better(self.best, feedback, criterion, self.names)
        if step == 0:
            self._drop_best(step)
        self._is_best = self.best is not before and step > 0

    def save(self, step: int, *, is_due: bool) -> None:
        """Begin the checkpoint of `step` if it is due and not there, and keep the model if it is the best so far.
        Both happen in the background. The logs reach the disk first: a resumed run needs them."""
        state = {"step": step, "best": self.best} if is_due and step != self._last_saved else None
        best = None
        if self._is_best:
            self._is_best = False
            loss_nats = verification_loss(self.engine, self._examples())
            best = {"step": step, "loss_nats": loss_nats, "num_data_ranks": self.engine.num_data_ranks}
        if state:
            self._last_saved = step
            self.log.flush()
        if state or best:
            self.meter.enter("writing the checkpoint", step)
            self._writer.begin(step, state, best)

    def commit_checkpoint(self, *, wait: bool) -> None:
        """Commit the checkpoint that was begun, if all ranks have written it, or once they have."""
        if self._writer.is_under_way:  # storage that does not answer may hold it up, which is no hang
            self.meter.enter("committing the checkpoint", self._last_saved)
        self._writer.settle(wait)

    def export(self) -> None:
        """Write the trained model and its losses on each held-out example, if the plan asks for it."""
        if self.plan.export:
            self.loss_meter.write_last(self.plan.num_steps)
            self._write_model("model", self.plan.num_steps)

    def export_best(self) -> None:
        """Turn the best model, if one has been kept since this was last done, into the folder `best/`."""
        content = on_rank_zero(lambda: checkpoint.read_best(self._checkpoints))
        if content is None:
            return
        folder, state = self._checkpoints / checkpoint.BEST, content["state"]
        kept = KeptModel(StoredTensors(folder, content["tensors"]), state["loss_nats"])
        self._write_model("best", state["step"], kept)
        if dist.get_rank() == 0:
            remove_best(self._checkpoints)

    def close(self) -> None:
        self.loader.close()
        self.streams.close()
        self.log.close()
        self._lines.close()
        self.engine.destroy()

    def _write_model(self, name: str, step: int, kept: KeptModel | None = None) -> None:
        self.meter.enter(f"writing {name}/", step)
        tokenizer = load_tokenizer(self.plan.model)
        end_id = taught_end(tokenizer, self._train_stores)
        export_model(self.engine, tokenizer, self.plan.folder / name, self._examples(), end_id, kept)

    def _examples(self) -> Batch:
        return held_out_examples(self.loss_meter.batches)

    def _watch(self, step: int) -> Attachment | None:
        """The strategy's attachment, set to observe this step; None before steps without an evaluation."""
        is_measured = step % self.plan.evaluation.every == 0 or step == self.plan.num_steps
        if self.engine.attachment is None or not is_measured:
            return None
        self.engine.attachment.watch()
        return self.engine.attachment

    def _prove_isolation(self, *stores: dict[str, TokenStore]) -> None:
        """Choose how packed examples are kept apart, and record what was measured."""
        isolation = self.engine.prove_isolation(find_proof_row(store for part in stores for store in part.values()))
        if dist.get_rank() == 0:
            write_durably(self.plan.folder / "isolation.json", json.dumps(asdict(isolation), indent=1).encode())
            log_event(self.plan.folder, self.num_steps_done, "packing", str(isolation))

    def _restore(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest complete checkpoint; returns the steps done and the best model so far."""
        name, faults = on_rank_zero(self._find_checkpoint)
        newest = self._checkpoints / name if name else None
        state: dict[str, Any] = {"step": 0, "best": None}
        origin, start = "the base model", self.plan.start
        if newest:
            state = checkpoint.load(self.engine, newest)
        elif start:
            origin = str(start.checkpoint or start.model.path)
            if start.checkpoint:
                checkpoint.load(self.engine, start.checkpoint, start.keeps_optimizer)
        if dist.get_rank() == 0:
            for fault in faults:
                log_event(self.plan.folder, state["step"], "torn_checkpoint", fault)
            begins = f"resumes after step {state['step']}" if newest else f"starts from {origin}"
            log_event(self.plan.folder, state["step"], "attempt", f"attempt {self.attempt} {begins}")
        return state["step"], self._best_of(state) if newest else None

    def _best_of(self, state: dict[str, Any]) -> Best | None:
        criterion, folder = self.plan.evaluation.best, self.plan.folder
        best: Best | None = on_rank_zero(lambda: with_start(state["best"], folder, criterion, self.names))
        if best and best["step"] == 0:
            self._drop_best(state["step"])
        return best

    def _drop_best(self, step: int) -> None:
        """Remove a best model from steps that are repeated, or from an older raymix that did not count step 0."""
        folder = self.plan.folder
        if dist.get_rank() == 0:
            remove_best(self._checkpoints)
        if dist.get_rank() == 0 and (folder / "best").exists():
            remove_folder(folder / "best")
            why = f"up to step {step} no evaluation beat the model at the start" if step else "training starts again"
            log_event(folder, step, "best", f"best/ was removed: {why}")

    def _find_checkpoint(self) -> tuple[str | None, list[str]]:
        """The name of the newest one, whose path may be another on every node, and what is wrong with newer ones."""
        faults: list[str] = []
        newest = checkpoint.latest_checkpoint(self._checkpoints, faults.append)
        return newest.name if newest else None, faults

    def _refuse_non_finite(self, batch: Batch, loss_sum_D: list[float], local_sum_D: list[float]) -> None:
        """Stop on every rank: the sums are the same on all of them."""
        bad = [d for d, loss in enumerate(loss_sum_D) if not math.isfinite(loss)]
        if bad:
            mine = [d for d in bad if not math.isfinite(local_sum_D[d])]
            rows = {self.trained[d]: batch.row_B[batch.domain_B == d].tolist() for d in mine}
            raise self._diverged(
                batch.step,
                f"step {batch.step}: the training loss of {[self.trained[d] for d in bad]} is not finite; nothing was "
                f"updated; rows of this rank that it came from: {rows}; inspect them or lower the learning rate",
            )

    def _diverged(self, step: int, message: str) -> NonFiniteLossError:
        """The error that ends the run, also logged as an event, because the run leaves no summary."""
        if dist.get_rank() == 0:
            log_event(self.plan.folder, step, "diverged", message)
        self.commit_checkpoint(wait=True)  # of an earlier step
        self.export_best()
        return NonFiniteLossError(message)
