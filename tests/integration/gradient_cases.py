"""What the tests of a step's gradient run on every rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.integration.zero_cases import (
    NUM_DOMAINS,
    Case,
    build_engine,
    global_batch,
    learning_rate,
    save,
    whole_state,
)


def step_gradient(case: Case) -> dict[str, torch.Tensor]:
    """This rank's part of the first step's gradient as the inner optimizer gets it, zeros elsewhere, in float64."""
    from workers.engine.zero_state import stepped_tensors

    engine = build_engine(case)
    fragments = {id(stepped): of_it for stepped, of_it in stepped_tensors(engine)}
    names = {id(p): name for name, p in engine.trainable_parameters().items()}
    shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in engine.trainable_parameters().items()}
    found = {name: torch.zeros(shape.numel(), dtype=torch.float64) for name, shape in shapes.items()}

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            for f in fragments[id(p)]:
                piece = p.grad.flatten()[f.offset : f.offset + f.length]
                found[names[id(f.parameter)]][f.start : f.start + f.length] = piece.double()

    getattr(engine.optimizer, "optimizer", engine.optimizer).register_step_pre_hook(look)
    engine.forward_backward(global_batch(1, engine.rank, engine.world_size), NUM_DOMAINS)
    engine.step(learning_rate(1))
    engine.destroy()
    return found


def sum_of_passes(case: Case) -> dict[str, torch.Tensor]:
    """The same on one rank by its definition: the gradient of each row by itself, added up in float64."""
    engine = build_engine(case)
    batch = global_batch(1)
    total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in engine.trainable_parameters().items()}
    for row in range(len(batch.row_B)):
        arrays = ("input_ids_BL", "position_ids_BL", "loss_mask_BL", "domain_B", "row_B")
        alone = replace(batch, **{name: getattr(batch, name)[row : row + 1] for name in arrays})
        engine.forward_backward(alone, NUM_DOMAINS)
        for name, p in engine.trainable_parameters().items():
            total[name] += p.grad.flatten().double()
            p.grad = None
    engine.destroy()
    return total


def step_on_a_planted_gradient(case: Case, number: float) -> tuple[float, bool]:
    """The norm of a step where rank 0's gradient of one weight holds `number`; whether anything changed in the step."""
    engine = build_engine(case)
    for step in (1, 2):
        engine.forward_backward(global_batch(step, engine.rank, engine.world_size), NUM_DOMAINS)
        engine.step(learning_rate(step))
    before = _state(engine)
    p = engine.trainable_parameters()["model.layers.1.mlp.up_proj.weight"]

    def plant(gradient: torch.Tensor) -> torch.Tensor:
        planted = gradient.clone()
        planted[3, 5] = number
        return planted

    watch = p.register_hook(plant) if engine.rank == 0 else None
    engine.forward_backward(global_batch(3, engine.rank, engine.world_size), NUM_DOMAINS)
    if watch:
        watch.remove()
    norm = engine.step(learning_rate(3))
    after = _state(engine)
    engine.destroy()
    return norm, any(not torch.equal(before[name], after[name]) for name in before)


def _state(engine: Any) -> dict[str, torch.Tensor]:
    from workers.engine.zero_state import TrainedState

    parts = {f"{part} of {name}": t for name, whole in whole_state(engine).items() for part, t in enumerate(whole)}
    batch = global_batch(99, engine.rank, engine.world_size)
    parts["losses"] = engine.forward(batch, NUM_DOMAINS)[0]
    parts["updates"] = torch.tensor(TrainedState(engine).adam_step())
    return {name: tensor.detach().clone() for name, tensor in parts.items()}


def step_where_one_parameter_has_a_gradient(case: Case) -> float:
    """The norm of a step whose loss is the sum of the head's weights."""
    engine = build_engine(case)
    engine.deepspeed.backward(engine.module.lm_head.weight.float().sum(), scale_wrt_gas=False)
    norm = engine.step(learning_rate(1))
    engine.destroy()
    return norm


def save_with_a_planted_number(case: Case, folder: Path, part: int, number: float, ranks: list[int]) -> str:
    """Plant a number into the master (0) or a moment (1, 2) of one weight on some ranks, and save; a rank's error."""
    from workers.engine.zero_state import TrainedState

    engine = build_engine(case)
    for step in (1, 2):
        engine.forward_backward(global_batch(step, engine.rank, engine.world_size), NUM_DOMAINS)
        engine.step(learning_rate(step))
    save(engine, folder, 2, {}, keep=1)
    for piece in TrainedState(engine).held():
        place = 3 * 64 + 5 - piece.start
        if piece.name == "model.layers.1.mlp.up_proj.weight" and 0 <= place < piece.length and engine.rank in ranks:
            piece.parts[part].view(-1)[place] = number
    try:
        save(engine, folder, 3, {}, keep=1)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        engine.destroy()
    return "no error"
