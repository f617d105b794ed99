"""The mean hidden state of each example."""

import numpy as np
import torch

from workers.signals.meter import _mean_by_example


def test_each_example_has_the_mean_of_its_own_tokens() -> None:
    """Two rows of three tokens, three examples, one token of padding."""
    hidden_BLH = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]], [[-1.0, 2.0], [7.0, 7.0], [0.5, 0.25]]])
    example_BL = np.array([[0, 0, 1], [2, -1, 2]])
    expected = [[2.0, 2.0], [5.0, 5.0], [-0.25, 1.125]]
    assert _mean_by_example(hidden_BLH, example_BL, 3).tolist() == expected


def test_the_mean_of_bfloat16_is_summed_in_float32() -> None:
    """In bfloat16 a sum of ones stays at 256."""
    ones_BLH = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    assert _mean_by_example(ones_BLH, np.zeros((1, 1000), dtype=np.int64), 1).tolist() == [[1.0, 1.0]]


def test_the_mean_is_computed_where_the_hidden_states_lie() -> None:
    """Not on torch's default device, which here is one that holds no numbers, as on a GPU it is the CPU."""
    with torch.device("meta"):
        mean = _mean_by_example(torch.ones(1, 2, 3, device="cpu"), np.zeros((1, 2), dtype=np.int64), 1)
    assert mean.tolist() == [[1.0, 1.0, 1.0]]
