"""Fine-tune with trl's SFTTrainer on the CPU, and print the useful tokens of each step and its seconds as JSON.

`compare.py` starts it with the Python of trl's environment, in one process or under torchrun in several.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class CountingTrainer(SFTTrainer):
    """Adds up the tokens of its batches that are not padding."""

    num_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        self.num_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *args, **kwargs)


class Clock(TrainerCallback):
    """Seconds of each step, from the end of the one before, so that its batch is counted."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.trainer: CountingTrainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        self.tokens.append(self.trainer.num_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "data", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("steps", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--packing", choices=("bfd", "wrapped"))
    given = parser.parse_args()
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = SFTConfig(
        output_dir=str(given.folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=given.steps,
        per_device_train_batch_size=given.batch // num_processes,
        max_length=given.length,
        packing=given.packing is not None,
        packing_strategy=given.packing or "bfd",
        learning_rate=1e-4,
        save_strategy="no",
        report_to=[],
        logging_steps=10**6,
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = CountingTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
        args=settings,
        train_dataset=load_dataset("json", data_files=str(given.data), cache_dir=str(given.folder / "cache"))["train"],
        processing_class=AutoTokenizer.from_pretrained(given.model),
        callbacks=[clock],
    )
    clock.trainer = trainer
    trainer.train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    mine = torch.tensor([after - before for before, after in zip(clock.tokens, clock.tokens[1:], strict=False)])
    if num_processes > 1:
        torch.distributed.all_reduce(mine)
    if trainer.is_world_process_zero():
        print(json.dumps(list(zip(mine.tolist(), seconds, strict=True))), flush=True)


if __name__ == "__main__":
    main()
