"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from workers.config.training import TrainingConfig


def learning_rate(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Learning rate of a step, counted from 1: linear warm-up to the peak, then linear, cosine or constant.

    Linear and cosine reach 0 one step after the last, so that the last step still has an effect.
    """
    num_warmup = math.ceil(training.warmup_fraction * num_steps)
    if step <= num_warmup:
        return training.learning_rate * step / num_warmup
    progress = (step - 1 - num_warmup) / max(num_steps - num_warmup, 1)
    match training.schedule:
        case "constant":
            return training.learning_rate
        case "linear":
            return training.learning_rate * (1.0 - progress)
        case "cosine":
            return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
