"""What ends a training on all ranks together, because another attempt would end in the same way."""

import math


class StreamError(RuntimeError):
    """The next rows of a streamed domain cannot be had. A checkpoint holds the steps before."""


class NonFiniteLossError(RuntimeError):
    """A training loss or gradient is NaN or infinite. No checkpoint is written after it."""


def refuse_start(loss_sum_nats: dict[str, float]) -> None:
    """Stop on every rank before the first step if the initial model is NaN or infinite."""
    bad = {name: loss for name, loss in loss_sum_nats.items() if not math.isfinite(loss)}
    if bad:
        listed = ", ".join(f"{name} is {loss}" for name, loss in bad.items())
        raise NonFiniteLossError(
            f"before the first step: with the initial model the loss of {listed}; its weights are damaged, or its "
            "activations exceed model.dtype: check the files of model.path, or try model.dtype float32"
        )
