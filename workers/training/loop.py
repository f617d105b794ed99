"""The training loop: pull the weights, train one step on their mix, and every few steps measure and push.

It runs on every rank, with or without Ray Train: the caller initialises torch.distributed and passes a `WeightsSource`.
It depends neither on the mixing algorithm nor on the training strategy.
"""

from workers.contracts import WeightsSource
from workers.training.plan import TrainingPlan
from workers.training.progress import ProgressMeter
from workers.training.trainer import Trainer


def train(plan: TrainingPlan, source: WeightsSource, meter: ProgressMeter | None = None) -> None:
    """Train from the last checkpoint, or from the base model, to the last step; then write `model/`. If the source says
    stop, end after the previous step with a checkpoint from which the run can resume. `meter` is told of progress."""
    evaluate_every, checkpoint_every = plan.evaluation.every, plan.training.checkpoint_every
    trainer = Trainer(plan, source, meter or ProgressMeter())
    trainer.follow_history()
    if trainer.num_steps_done == 0:
        trainer.measure(step=0)

    for step in range(trainer.num_steps_done + 1, plan.num_steps + 1):
        is_last = step == plan.num_steps
        if not trainer.follow_weights(step):
            trainer.save(step - 1, is_due=True)
            trainer.commit_checkpoint(wait=True)
            break
        trainer.reach_rows(step)
        trainer.train_step(step)
        # The evaluation and its push come before the checkpoint of the same step. A crash between the two repeats the
        # steps since the last checkpoint, and pushing the same evaluation again changes nothing. In the other order the
        # resumed run would never push it, and the controller would miss an update.
        if step % evaluate_every == 0 or is_last:
            trainer.measure(step)
        trainer.save(step, is_due=step % checkpoint_every == 0 or is_last)
        trainer.commit_checkpoint(wait=is_last)
    else:
        trainer.export()

    trainer.export_best()
    trainer.close()
