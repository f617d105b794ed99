"""The training loop: pull the weights, train one step on their mix, and every few steps measure and push.

It runs on every rank, under Ray Train or without it: the caller initialises torch.distributed and gives a
`WeightsSource`. It does not know which mixing algorithm answers, nor which strategy moves which parameters.
"""

from workers.contracts import WeightsSource
from workers.training.plan import TrainingPlan
from workers.training.trainer import Trainer


def train(plan: TrainingPlan, source: WeightsSource) -> None:
    """Train from the last checkpoint, or from the base model, to the last step; then write `model/`. Where the source
    says stop, end after the step before, with a checkpoint to go on from."""
    evaluate_every, checkpoint_every = plan.evaluation.every, plan.training.checkpoint_every
    trainer = Trainer(plan, source)
    trainer.follow_history()
    if trainer.num_steps_done == 0:
        trainer.measure(step=0)

    for step in range(trainer.num_steps_done + 1, plan.num_steps + 1):
        is_last = step == plan.num_steps
        if not trainer.follow_weights(step):
            trainer.save_checkpoint(step - 1)
            break
        trainer.train_step(step)
        if step % evaluate_every == 0 or is_last:
            trainer.measure(step)
        if step % checkpoint_every == 0 or is_last:
            trainer.save_checkpoint(step)
    else:
        trainer.export()

    trainer.close()
