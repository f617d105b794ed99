"""Exports with a fault planted in them, as every rank runs them."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from tests.integration import zero_cases
from tests.integration.zero_cases import Case

ADAPTER = "adapter/adapter_model.safetensors"


def faulty_export(case: Case, fault: str, folder: Path) -> tuple[str, list[str]]:
    """Export after one step, and with the fault after two; the error, and what lies beside the folder then."""
    from workers.export import export_model, held_out_examples

    engine = zero_cases.build_engine(case)
    example = held_out_examples([zero_cases.global_batch(98, engine.rank, engine.world_size)])
    for step in (1, 2):
        batch = zero_cases.global_batch(step, engine.rank, engine.world_size)
        engine.forward_backward(batch, zero_cases.NUM_DOMAINS)
        engine.step(0.01)
        if step == 1:
            export_model(engine, zero_cases.tokenizer(), folder, example, end_id=None)
    error = "no error"
    with ExitStack() as planted:
        FAULTS[fault](engine, planted)
        try:
            export_model(engine, zero_cases.tokenizer(), folder, example, end_id=None)
        except RuntimeError as caught:
            error = f"{type(caught).__name__}: {caught}"
    engine.destroy()
    return error, sorted(path.name for path in folder.parent.iterdir())


def export_now_and_later(case: Case, folder: Path) -> list[str]:
    """Export the model of step 2 there and then, and from the masters kept of it after two steps more; what is kept
    beside the checkpoints meanwhile."""
    from workers.engine.checkpoint import BEST, read_best
    from workers.engine.checkpoint_writer import CheckpointWriter
    from workers.engine.stored_tensors import StoredTensors
    from workers.export import KeptModel, export_model, held_out_examples, verification_loss

    engine = zero_cases.build_engine(case)
    examples = held_out_examples([zero_cases.global_batch(98, engine.rank, engine.world_size)])
    writer = CheckpointWriter(engine, folder / "checkpoints", keep=1)
    for step in range(1, 5):
        batch = zero_cases.global_batch(step, engine.rank, engine.world_size)
        engine.forward_backward(batch, zero_cases.NUM_DOMAINS)
        engine.step(0.01)
        if step == 2:
            export_model(engine, zero_cases.tokenizer(), folder / "now", examples, end_id=None)
            writer.begin(step, None, {"loss_nats": verification_loss(engine, examples)})
        writer.settle(wait=False)
    writer.settle(wait=True)
    found = read_best(folder / "checkpoints")
    assert found is not None
    kept = KeptModel(StoredTensors(folder / "checkpoints" / BEST, found["tensors"]), found["state"]["loss_nats"])
    export_model(engine, zero_cases.tokenizer(), folder / "later", examples, None, kept)
    engine.destroy()
    return sorted(path.name for path in (folder / "checkpoints").rglob("*"))


def train_and_keep_best(config_path: Path) -> None:
    """Train a run to its end, and leave its best model beside the checkpoints as well."""
    import torch.distributed as dist

    from orchestrator.config.load import load_config
    from orchestrator.controller.journal import DurableController
    from orchestrator.mixing import Measured, build_mixing_algorithm, resolve_mixing
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.runs.lock import claim_folder
    from orchestrator.training.plan import build_plan, domain_sizes
    from workers.training.loop import train

    config = load_config(config_path)
    controller: Any = None
    if dist.get_rank() == 0:
        with claim_folder(config):  # writes config.json
            stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir)
        mixing = resolve_mixing(config.mixing, Measured(), config.trained_domains)
        algorithm = build_mixing_algorithm(mixing, domain_sizes(stores))
        controller = DurableController(config.folder, "kept", algorithm)
    dist.barrier()
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir)
    with patch("workers.training.trainer.remove_best"):
        train(build_plan(config, "kept", stores), controller)


def _forget_buffers(engine: Any, planted: ExitStack) -> None:
    """As exports were before: parameters alone."""
    import workers.export.writing as writing

    gather = writing._gather

    def parameters_alone(engine: Any, *args: Any) -> dict[str, torch.Tensor]:
        names = dict(engine.module.named_parameters())
        return {name: t for name, t in gather(engine, *args).items() if name in names}

    planted.enter_context(patch("workers.export.writing._gather", parameters_alone))


def _edit_file(file: str, edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Any, ExitStack], None]:
    """Alter the weights as soon as they are written."""

    def plant(engine: Any, planted: ExitStack) -> None:
        import workers.export.writing as writing

        name = "save_adapter" if file == ADAPTER else "_save"
        save = getattr(writing, name)

        def save_and_alter(*args: Any) -> None:
            save(*args)
            folder = args[2].parent if file == ADAPTER else args[1]
            tensors = load_file(folder / file)
            edit(tensors)
            save_file(tensors, folder / file, {"format": "pt"})

        planted.enter_context(patch(f"workers.export.writing.{name}", save_and_alter))

    return plant


def _drop(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(name for name in sorted(tensors) if part in name)]

    return edit


def _alter(part: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(name for name in sorted(tensors) if part in name)].flatten()[:1].mul_(factor)

    return edit


def _skip_one_merge(engine: Any, planted: ExitStack) -> None:
    from peft.tuners.lora import Linear

    merge, skipped = Linear.merge, []

    def merge_but_one(layer: Any, *args: Any, **kwargs: Any) -> None:
        if skipped:
            merge(layer, *args, **kwargs)
        else:
            skipped.append(layer)
            layer.merged_adapters.append("default")

    planted.enter_context(patch.object(Linear, "merge", merge_but_one))


def _stay_tied(engine: Any, planted: ExitStack) -> None:
    planted.enter_context(patch("workers.export.writing._untie", lambda base, weights: None))


def _break(engine: Any, planted: ExitStack) -> None:
    next(p for p in engine.module.parameters() if p.requires_grad).data.view(-1)[3] = float("nan")


FAULTS: dict[str, Callable[[Any, ExitStack], None]] = {
    "no buffers": _forget_buffers,
    "a buffer lost": _edit_file("model.safetensors", _drop("e_score_correction_bias")),
    "a buffer altered": _edit_file("model.safetensors", _alter("e_score_correction_bias", 1.0001)),
    "a weight altered": _edit_file("model.safetensors", _alter("o_proj.weight", 1.0001)),
    "a weight added": _edit_file("model.safetensors", lambda tensors: tensors.update(more=torch.zeros(2))),
    "an adapter lost": _edit_file(ADAPTER, _drop("lora_B")),
    "an adapter altered": _edit_file(ADAPTER, _alter("lora_B", 1.0001)),
    "a merge skipped": _skip_one_merge,
    "still tied": _stay_tied,
    "not a number": _break,
}
