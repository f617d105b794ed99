"""Bits of the step: what ten steps of two ranks come to at each ZeRO stage, printed in full to compare two commits.

    python benchmarks/zero_bits.py > bits.txt

Two outputs from one machine are equal if and only if no loss, gradient norm, evaluation, master weight or moment
changed in any bit: `diff` them after a change that should leave the numbers as they were. Lines that do not start with
`zero` come from the libraries.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration import zero_cases
from tests.integration.zero_processes import ZeroProcesses

_STEPS = 10


def measure(case: zero_cases.Case) -> list[str]:
    """Lines of one rank: for each step the losses, token counts, gradient norm and evaluation; a digest at the end."""
    import torch
    from torch import distributed

    engine = zero_cases.build_engine(case)
    lines = []
    held_out: Any = zero_cases.global_batch(99, engine.rank, engine.world_size)
    for step in range(1, _STEPS + 1):
        batch = zero_cases.global_batch(step, engine.rank, engine.world_size)
        losses, tokens = engine.forward_backward(batch, zero_cases.NUM_DOMAINS)
        distributed.all_reduce(losses)
        distributed.all_reduce(tokens)
        norm = engine.step(zero_cases.learning_rate(step))
        evaluation = engine.forward(held_out, zero_cases.NUM_DOMAINS)[0]
        lines.append(f"step {step} {losses.tolist()} {tokens.tolist()} {norm!r} {evaluation.tolist()}")
    digest = hashlib.sha256()
    for _, tensors in sorted(zero_cases.whole_state(engine).items()):
        for tensor in tensors:
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    engine.destroy()
    return [*lines, f"masters and moments sha256 {digest.hexdigest()}"]


def main() -> None:
    model = zero_cases.tiny_model()
    cases = {f"zero{stage}": (zero_cases.training_of(stage), "float32") for stage in (0, 1, 2, 3)}
    cases |= {f"zero{stage}-bf16": (zero_cases.training_of(stage), "bfloat16") for stage in (1, 3)}
    cases["zero2-lora"] = (zero_cases.training_of(2, strategy=zero_cases.LORA), "float32")
    group = ZeroProcesses(2)
    for name, (training, dtype) in cases.items():
        for rank, lines in enumerate(group.run(measure, zero_cases.Case(model, training, dtype))):
            for line in lines:
                print(name, "rank", rank, line, flush=True)
    group.close()


if __name__ == "__main__":
    main()
