"""Experts at ZeRO-3: no rank waits for another whose tokens go to fewer experts, and losses are those of stage 1."""

from typing import Any

import numpy as np
import pytest

from tests.integration import expert_cases
from tests.integration.expert_cases import tiny_experts
from tests.integration.zero_cases import Case, training_of
from tests.integration.zero_processes import processes
from tests.soak import few


@pytest.mark.parametrize("strategy", few([{"type": "lora", "rank": 4}, {"type": "full"}], 1))
@pytest.mark.parametrize(
    ("family", "way"), [("qwen3_moe", "positions"), ("qwen3_moe", "separate"), ("jamba", "separate")]
)
def test_ranks_may_use_unlike_numbers_of_experts_and_of_passes(family: str, way: str, strategy: dict[str, Any]) -> None:
    """A pass without targets has no part in the router loss, and yet the same modules in its backward pass."""
    stages = [
        processes(2).run(
            expert_cases.train_on_unlike_tokens,
            Case(tiny_experts(family), training_of(stage, strategy=strategy), way=way),
        )[0]
        for stage in (1, 3)
    ]
    np.testing.assert_allclose(stages[1], stages[0], rtol=0, atol=1e-4)
