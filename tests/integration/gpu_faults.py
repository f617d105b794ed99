"""Parts of `make gpu` with a fault planted in them, as a rank runs them."""

from pathlib import Path
from unittest.mock import patch

from benchmarks.gpu_model import Sizes
from benchmarks.gpu_parts import Row, measure_losses


def losses_with_gradients_of_wrong_sign(sizes: Sizes, folder: Path) -> list[Row]:
    """DeepSpeed goes uphill."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    backward = DeepSpeedEngine.backward
    with patch.object(DeepSpeedEngine, "backward", lambda self, loss, **more: backward(self, -loss, **more)):
        return measure_losses(sizes, folder)
