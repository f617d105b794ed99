"""Where each parameter is in the flat fp32 tensors that the inner optimizer steps, at every ZeRO stage.

At stage 0 the optimizer steps whole parameters (in bf16 their fp32 masters). At stages 1 and 2 a rank steps one flat
piece of all parameters of a group; at stage 3 flat pieces, at least one per group, of this rank's part of each
parameter, padded if the parameter is not divisible by the ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.engine.zero_state import full_shape, replicated_masters

if TYPE_CHECKING:
    from workers.engine.engine import Engine


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of a flattened parameter, at `offset` of a flat tensor."""

    parameter: torch.nn.Parameter
    offset: int
    start: int
    length: int


def stepped_tensors(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    """Each tensor that this rank's inner optimizer steps, with its fragments; the rest of it is padding."""
    match engine.zero_stage:
        case 0:
            yield from _whole_parameters(engine)
        case 1 | 2:
            yield from _flat_groups(engine)
        case _:
            yield from _flat_pieces(engine)


def _whole_parameters(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    masters = replicated_masters(engine.optimizer, engine.zero_stage)
    for p in engine.trainable_parameters().values():
        yield masters.get(id(p), p), [Fragment(p, 0, 0, p.numel())]


def _flat_groups(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    optimizer = engine.optimizer
    if hasattr(optimizer, "bf16_groups"):  # DeepSpeed's choice at stage 1 for sums in float32
        groups = zip(optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, strict=True)
    else:
        groups = zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True)
    for flat, parameters in groups:
        mappings = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]
        yield (
            flat,
            [
                Fragment(p, m.hp_fragment_address.start, m.lp_fragment_address.start, m.hp_fragment_address.numel)
                for p, m in mappings
            ],
        )


def _flat_pieces(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    optimizer = engine.optimizer
    for flat, parameters in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
        fragments, offset = [], 0
        for p in parameters:
            held = p.ds_tensor.ds_numel
            start = engine.rank * held
            length = max(0, min(held, full_shape(p).numel() - start))  # the last ranks' pieces may be only padding
            fragments.append(Fragment(p, offset, start, length))
            offset += held
        yield flat, fragments
