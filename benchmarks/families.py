"""What raymix does with every family of causal language models that transformers builds small: docs/families.md.

    python benchmarks/families.py [FAMILY ...] [--json FILE] [--markdown FILE]

For each family a random model (`tiny_families.py`), in float32, by two processes: at ZeRO 1 and ZeRO 3, full and LoRA,
isolation is proved, packed examples are measured one by one, three steps are trained, and the result is exported. What
it is compared with is plain transformers, one example at a time without any padding: the base model before, a plain
AdamW training of three steps, and the exported folder loaded again.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

NUM_STEPS, LEARNING_RATE, ROWS, LENGTH = 3, 1e-3, 4, 96
WORLD_SIZE = 2
# Encoders that may be told to look back only, halves of encoder-decoders, models of other inputs than text, and further
# names of one and the same code.
NOT_DECODERS = """
    aria_text bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small blt camembert
    data2vec-text dots3_note electra emu3 ernie fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified
    gemma4_unified_assistant git got_ocr2 gpt-sw3 internlm3 iquestcoder llama4 marian mbart megatron-bert mllama
    moshi moss_transcribe_diarize musicgen musicgen_melody mvp pegasus phi4_multimodal plbart prophetnet qwen3_5
    qwen3_5_moe qwen4_exp reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm
    xlm-roberta xlm-roberta-xl xlnet xmod
"""


def all_families() -> list[str]:
    """Names of the families that are decoders of text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_DECODERS.split()))


def packed_batch(step: int, rank: int = 0, world_size: int = 1) -> Any:
    """A rank's slice of a step: packed rows of unequal examples, one of them longer than a window of attention."""
    from workers.data.batches import Batch

    rng = np.random.default_rng([11, step])
    input_ids_BL = np.zeros((ROWS, LENGTH), dtype=np.int32)
    position_ids_BL = np.zeros((ROWS, LENGTH), dtype=np.int32)
    loss_mask_BL = np.zeros((ROWS, LENGTH), dtype=np.bool_)
    for row in range(ROWS):
        start = 0
        for size in (70, 20) if row == 0 else rng.integers(9, 28, size=3):
            end = start + int(size)
            input_ids_BL[row, start:end] = rng.integers(3, 90, size=size)
            position_ids_BL[row, start:end] = np.arange(size)
            loss_mask_BL[row, start + 1 : end] = True
            start = end
    rows = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    zeros = np.zeros(1, dtype=np.int64)
    return Batch(
        step=step,
        weights_version=0,
        input_ids_BL=input_ids_BL[rows],
        position_ids_BL=position_ids_BL[rows],
        loss_mask_BL=loss_mask_BL[rows],
        domain_B=np.zeros(ROWS, dtype=np.int64)[rows],
        row_B=np.arange(ROWS, dtype=np.int64)[rows],
        global_loss_tokens=int(loss_mask_BL.sum()),
        global_tokens=int((position_ids_BL > 0).sum()) + int(loss_mask_BL.sum()),
        global_rows_D=zeros,
        domain_rows_seen_D=zeros,
    )


def examples_of(batch: Any) -> list[np.ndarray]:
    """Token ids of each example, in order of the rows."""
    examples = []
    for ids, positions in zip(batch.input_ids_BL, batch.position_ids_BL, strict=True):
        starts = np.flatnonzero(positions == 0)
        pieces = np.split(ids, starts[1:])
        examples += [piece for piece in pieces if len(piece) > 1]
    return examples


def plain_nats(model: Any, batch: Any) -> list[Any]:
    """Loss of each example's tokens, each example alone in a call of plain transformers."""
    import torch
    import torch.nn.functional as F

    losses = []
    for ids in examples_of(batch):
        input_ids = torch.from_numpy(ids.astype(np.int64))[None]
        logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, input_ids[0, 1:], reduction="none"))
    return losses


def plain_training(folder: Path) -> dict[str, Any]:
    """Losses of each example under the base model, and the losses of three steps of AdamW, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        base = [float(nats.mean()) for nats in plain_nats(model, packed_batch(0))]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = []
    for step in range(1, NUM_STEPS + 1):
        loss = torch.cat(plain_nats(model, packed_batch(step))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append(float(loss.detach()))
    return {"base": base, "steps": steps}


def reloaded(folder: Path) -> dict[str, Any]:
    """Losses of each example under an exported folder, and the keys that plain transformers finds amiss in it."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model.eval()
    with torch.no_grad():
        losses = [float(nats.mean()) for nats in plain_nats(model, packed_batch(0))]
    keys = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind])
    return {"losses": losses, "keys": keys}


def train(folder: Path, stage: int, strategy: str, output: Path) -> dict[str, Any]:
    """On every rank: prove, measure, train three steps, export, measure again."""
    import torch.distributed as dist

    from workers.config.model import ModelConfig
    from workers.config.training import TrainingConfig
    from workers.engine.engine import Engine
    from workers.export import export_model, held_out_examples
    from workers.model.tokenizer import load_tokenizer
    from workers.strategies.lora.matrices import find_reach

    rank, world_size = dist.get_rank(), dist.get_world_size()
    training = TrainingConfig.model_validate(
        {
            "max_steps": NUM_STEPS,
            "global_batch_size": ROWS,
            "micro_batch_size": 2,
            "learning_rate": LEARNING_RATE,
            "router_loss": False,
            "strategy": {"type": strategy, **({"rank": 4} if strategy == "lora" else {})},
            "deepspeed": {"zero_stage": stage},
        }
    )
    model = ModelConfig(path=str(folder), dtype="float32")
    engine = Engine.build(model, training, seed=0)
    try:
        began = time.perf_counter()
        isolation = engine.prove_isolation(_first_row())
        seconds = time.perf_counter() - began
        base = _measure(engine)
        steps = []
        for step in range(1, NUM_STEPS + 1):
            loss_sum_D, num_tokens_D = engine.forward_backward(packed_batch(step, rank, world_size), 1)
            for total in (loss_sum_D, num_tokens_D):
                dist.all_reduce(total)
            steps.append(float(loss_sum_D[0] / num_tokens_D[0]))
            engine.step(LEARNING_RATE)
        trained = _measure(engine)
        export_model(engine, load_tokenizer(model), output, held_out_examples([packed_batch(0)]), end_id=None)
        return {
            "way": isolation.way,
            "refused": isolation.refused,
            "proof_seconds": seconds,
            "base": base,
            "steps": steps,
            "trained": trained,
            "adapted": find_reach(engine.module).share_of_parameters if strategy == "lora" else 1.0,
        }
    finally:
        engine.destroy()


def _first_row() -> Any:
    from dataclasses import replace

    batch = packed_batch(0)
    arrays = {name: getattr(batch, name)[:1] for name in ("input_ids_BL", "position_ids_BL", "loss_mask_BL")}
    return replace(batch, **arrays, domain_B=batch.domain_B[:1], row_B=batch.row_B[:1])


def _measure(engine: Any) -> list[float]:
    """Loss of each example by the engine, from whole packed rows; every rank brings all of them."""
    batch = packed_batch(0)
    nats_N, _ = engine.forward_tokens(batch)
    sizes = [len(ids) - 1 for ids in examples_of(batch)]
    return [float(part.mean()) for part in nats_N.split(sizes)]


class Ranks:
    """Two processes of one gloo group, started anew after a failure."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, *args: Any) -> Any:
        """Rank 0's result of `train`; RuntimeError with what the first rank that failed says."""
        for pipe in self._pipes:
            pipe.send(args)
        result, waiting = None, list(self._pipes)
        while waiting:
            ready = multiprocessing.connection.wait(waiting, timeout=240)
            if not ready:
                raise RuntimeError("no answer in 240 s")
            for pipe in ready:
                waiting.remove(pipe)  # type: ignore[arg-type]
                is_result, answer = pipe.recv()  # type: ignore[union-attr]
                if not is_result:
                    raise RuntimeError(answer)
                result = answer if pipe is self._pipes[0] else result
        return result

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, port: int, pipe: Any) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE), DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    while True:
        args = pipe.recv()
        try:
            pipe.send((True, train(*args)))
        except Exception as error:
            if os.environ.get("TRACE"):
                traceback.print_exc()
            pipe.send((False, f"{type(error).__name__}: {error}"))


def measure(family: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """One family's row of the table."""
    from tiny_families import write

    base = write(family, folder / "base")
    plain = plain_training(base)
    row: dict[str, Any] = {"family": family}
    for strategy in ("full", "lora"):
        for stage in (1, 3):
            name, output = f"{strategy}-{stage}", folder / f"{strategy}-{stage}"
            result = ranks.run(base, stage, strategy, output)
            again = reloaded(output)
            row[name] = {
                "way": result["way"],
                "refused": result["refused"],
                "proof_seconds": result["proof_seconds"],
                "adapted": result["adapted"],
                "packed_difference": _difference(result["base"], plain["base"]),
                "steps": result["steps"],
                "step_difference": _difference(result["steps"], plain["steps"]) if strategy == "full" else None,
                "exported_difference": _difference(again["losses"], result["trained"]),
                "keys_amiss": again["keys"],
            }
    return row


def _difference(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> None:
    """Measure the families and print one line each."""
    from families_table import line, page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the table as a page")
    arguments = parser.parse_args()
    _quiet()
    rows, ranks = [], Ranks()
    for family in arguments.families or all_families():
        folder = Path(tempfile.mkdtemp(prefix=f"raymix-{family}-"))
        try:
            row = measure(family, folder, ranks)
        except Exception as error:
            what = " ".join(str(error).replace(str(folder), "").split())
            row = {"family": family, "error": f"{type(error).__name__}: {what}"}
            if isinstance(error, RuntimeError):  # the ranks may hang
                ranks.close()
                ranks = Ranks()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(row)
        print(line(row), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))
    ranks.close()
    if arguments.markdown:
        arguments.markdown.write_text(page(rows))


if __name__ == "__main__":
    sys.exit(main())
