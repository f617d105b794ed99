"""How exact one step's gradient is: bfloat16 weights, summed in float32 and in bfloat16, at ZeRO 0 to 3.

    python benchmarks/gradient_precision.py [--model FOLDER] [--passes 128] [--ranks 2] [--json FILE]

The demo's domains in rows of 128 tokens, one row a pass, as many passes on each rank, one step of the real engine
without clipping; MODEL in place of the demo's base model. Relative errors in the L2 norm over all weights: of the
gradient against the one of the same weights, rounded to bfloat16, in float32; and of the sum alone, against the very
same passes' gradients added up in float64.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

STAGES, SUMS = (0, 1, 2, 3), ("float32", "bfloat16")
ARRAYS = ("input_ids_BL", "position_ids_BL", "loss_mask_BL", "domain_B", "row_B")


def write_plan(folder: Path, model: Path | None, num_passes: int, num_ranks: int) -> dict[str, Any]:
    """A run's plan over the demo's rows, from weights that bfloat16 holds exactly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orchestrator.cli.demo.driver import write_demo
    from orchestrator.config.load import load_config
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.training.plan import build_plan

    config = load_config(write_demo(folder / "demo"))
    source = model or Path(config.model.path)
    rounded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).bfloat16().float()
    rounded.save_pretrained(folder / "rounded")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "rounded")
    training = config.training.model_dump(mode="json") | {
        "max_steps": 1,
        "epochs": None,
        "max_tokens": None,
        "global_batch_size": num_passes * num_ranks,
        "micro_batch_size": 1,
        "max_grad_norm": 0.0,
    }
    changes = {"output_dir": str(folder), "training": training, "model": {"path": str(folder / "rounded")}}
    config = type(config).model_validate(config.model_dump(mode="json") | changes)
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir)
    return build_plan(config, "precision", stores).model_dump(mode="json")


def run_rank(spec: dict[str, Any]) -> None:
    """Every case on this rank; rank 0 prints the errors."""
    import torch

    from workers.training.plan import TrainingPlan

    torch.set_num_threads(1)
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    plan = TrainingPlan.model_validate(spec["plan"])
    batch = _read_batch(plan)
    exact = step_gradient(plan, batch, "float32", 0, "float32")
    total = sum_of_passes(plan, batch)
    lines = []
    for stage in STAGES:
        for sums in SUMS:
            found = step_gradient(plan, batch, "bfloat16", stage, sums)
            errors = {"error": _relative(found, exact), "error_of_sum": _relative(found, total)}
            lines.append({"zero_stage": stage, "gradient_dtype": sums, **errors})
    print(json.dumps({"cases": lines, "error_of_passes": _relative(total, exact)}), flush=True)
    os._exit(0)  # DeepSpeed and gloo wait for each other at exit


def step_gradient(plan: Any, batch: Any, dtype: str, stage: int, sums: str) -> Any:
    """The whole gradient of the step as the inner optimizer gets it, one float64 vector in the model's order."""
    import torch
    import torch.distributed as dist

    from workers.engine.zero_state import full_shape, stepped_tensors

    engine = _build(plan, dtype, stage, sums)
    fragments = {id(stepped): of_it for stepped, of_it in stepped_tensors(engine)}
    parameters = list(engine.trainable_parameters().values())
    ends = torch.tensor([full_shape(p).numel() for p in parameters]).cumsum(0).tolist()
    begin = dict(zip((id(p) for p in parameters), [0, *ends], strict=False))
    found = torch.zeros(ends[-1], dtype=torch.float64, device=engine.device)

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            for f in fragments[id(p)]:
                start = begin[id(f.parameter)] + f.start
                found[start : start + f.length] = p.grad.flatten()[f.offset : f.offset + f.length].double()

    getattr(engine.optimizer, "optimizer", engine.optimizer).register_step_pre_hook(look)
    engine.forward_backward(batch, len(plan.domains))
    engine.step(1e-5)
    engine.destroy()
    if stage:  # every rank steps its part
        dist.all_reduce(found)
    return found.cpu()


def sum_of_passes(plan: Any, batch: Any) -> Any:
    """The same by its definition: the bfloat16 gradient of every pass by itself, added up in float64."""
    import torch
    import torch.distributed as dist

    engine = _build(plan, "bfloat16", 0, "bfloat16")
    parameters = list(engine.trainable_parameters().values())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=engine.device)
    for row in range(len(batch.row_B)):
        alone = replace(batch, **{name: getattr(batch, name)[row : row + 1] for name in ARRAYS})
        engine.forward_backward(alone, len(plan.domains))
        total += torch.cat([p.grad.flatten().double() for p in parameters])
        for p in parameters:
            p.grad = None
    dist.all_reduce(total)
    total /= engine.world_size  # which a pass's loss is multiplied by, for DeepSpeed to divide by it
    engine.destroy()
    return total.cpu()


def _build(plan: Any, dtype: str, stage: int, sums: str) -> Any:
    from workers.engine.engine import Engine

    deepspeed = plan.training.deepspeed.model_copy(update={"zero_stage": stage, "gradient_dtype": sums})
    training = plan.training.model_copy(update={"deepspeed": deepspeed})
    return Engine.build(plan.model.model_copy(update={"dtype": dtype}), training, plan.seed)


def _read_batch(plan: Any) -> Any:
    import torch.distributed as dist

    from workers.contracts import DomainWeights
    from workers.data.batches import BatchLoader

    stores, _ = plan.open_stores()
    loader = BatchLoader(list(stores.values()), plan.build_schedule(stores), dist.get_rank(), dist.get_world_size(), 1)
    shares = dict.fromkeys(stores, 1 / len(stores))
    loader.announce(DomainWeights(version=0, effective_step=1, shares=shares, reason="initial", by="uniform"))
    batch = loader.get(1)
    kept = replace(batch, **{name: getattr(batch, name).copy() for name in ARRAYS})
    loader.close()
    return kept


def _relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def _on_all_ranks(spec: Path, num_ranks: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(spec)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--passes", type=int, default=128, help="of a rank in a step")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it guesses, and says so
    with tempfile.TemporaryDirectory() as name:
        spec = Path(name) / "spec.json"
        spec.write_text(json.dumps({"plan": write_plan(Path(name), given.model, given.passes, given.ranks)}))
        result = _on_all_ranks(spec, given.ranks)
    print(
        f"{given.passes} passes on each of {given.ranks} ranks; of the passes themselves, summed in float64: ", end=""
    )
    print(f"{100 * result['error_of_passes']:.3f} %")
    print("ZeRO  sums in    gradient  sum alone")
    for line in result["cases"]:
        errors = f"{100 * line['error']:8.3f} % {100 * line['error_of_sum']:8.4f} %"
        print(f"{line['zero_stage']:4}  {line['gradient_dtype']:9} {errors}")
    if given.json:
        given.json.write_text(json.dumps(result | {"passes": given.passes, "ranks": given.ranks}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--rank":
        run_rank(json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()
