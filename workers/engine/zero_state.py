"""Masters and Adam moments in the four ways (ZeRO stages 0 to 3) in which DeepSpeed keeps them.

`stepped_tensors` says where each parameter is in the flat fp32 tensors that the inner optimizer steps, and
`TrainedState` gives those places as views, so that a rank reads and replaces its own part without any other.
At stage 0 the optimizer steps whole parameters (in bf16 their fp32 masters). At stages 1 and 2 a rank steps one flat
piece of all parameters of a group; at stage 3 flat pieces, at least one per group, of this rank's part of each
parameter, padded if the parameter is not divisible by the ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workers.strategy import Fragment

if TYPE_CHECKING:
    from workers.engine.engine import Engine

PARTS = ("master", "exp_avg", "exp_avg_sq")
"""What is kept of each trainable parameter, in float32."""


@dataclass(frozen=True)
class Piece:
    """Elements of a flattened parameter from `start` on: its master and moments in the order of `PARTS`, as views of
    what this rank's optimizer steps."""

    name: str
    start: int
    parts: list[torch.Tensor]

    @property
    def length(self) -> int:
        return self.parts[0].numel()

    def cut(self, first: int, end: int) -> "Piece":
        """Elements [first, end) of this piece."""
        return Piece(self.name, self.start + first, [part.reshape(-1)[first:end] for part in self.parts])


class TrainedState:
    """The fp32 master and the two Adam moments of each trainable parameter, by name."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        # Stage 0 in fp32 has no wrapper around torch's AdamW.
        self._inner: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._parameters = engine.trainable_parameters()
        self.shapes = {name: full_shape(p) for name, p in self._parameters.items()}

    def materialise(self) -> None:
        """Make the optimizer create its state, with arbitrary values: DeepSpeed and Adam do so at the first step. A
        collective."""
        from workers.data.batches import MeasuredRow, collate

        zeros = np.zeros(2, dtype=np.int64)
        batch, _ = collate([MeasuredRow(0, 0, zeros, np.arange(2), np.array([False, True]), zeros)], num_domains=1)
        self._engine.forward_backward(replace(batch, global_loss_tokens=self._engine.world_size), num_domains=1)
        self._engine.step(learning_rate=0.0)

    def held(self) -> Iterator[Piece]:
        """Every piece that this rank steps: at stage 0 all parameters, otherwise those of its partition."""
        names = {id(p): name for name, p in self._parameters.items()}
        for flat, fragments in stepped_tensors(self._engine):
            parts = [flat.detach(), *(self._inner.state[flat][moment] for moment in PARTS[1:])]
            for fragment in fragments:
                if fragment.length:
                    yield Piece(names[id(fragment.parameter)], fragment.start, [_view(p, fragment) for p in parts])

    def owned(self) -> Iterator[Piece]:
        """The pieces of which all ranks together have each element once, every rank about as many as the others."""
        if self._engine.zero_stage:
            yield from self.held()  # DeepSpeed divides each group, or each parameter, evenly
            return
        rank, world_size, offset = self._engine.rank, self._engine.world_size, 0
        total = sum(shape.numel() for shape in self.shapes.values())
        mine = range(rank * total // world_size, (rank + 1) * total // world_size)
        for piece in self.held():
            first, end = max(mine.start - offset, 0), min(mine.stop - offset, piece.length)
            if first < end:
                yield piece.cut(first, end)
            offset += piece.length

    def publish(self) -> None:
        """Copy the masters to the weights used for computation, which DeepSpeed does only in a step; a collective."""
        optimizer = self._engine.optimizer
        match self._engine.zero_stage:
            case 0:
                masters = replicated_masters(optimizer, 0)
                for p in self._parameters.values():
                    p.data.copy_(masters.get(id(p), p).data)
            case 1 | 2:
                optimizer.update_lp_params()
            case _:  # as in the step of DeepSpeed's optimizer
                optimizer._partition_all_parameters()
                for group in range(len(optimizer.fp16_groups)):
                    optimizer._reassign_or_swap_out_partitioned_parameters(group)
                optimizer.checkpoint_event_epilogue()  # parameters that are kept whole

    def adam_step(self) -> int:
        """Updates done so far, which Adam's bias correction needs."""
        return int(next(iter(self._inner.state.values()))["step"])

    def set_adam_step(self, step: int) -> None:
        for state in self._inner.state.values():
            state["step"].fill_(step)


def _view(tensor: torch.Tensor, fragment: Fragment) -> torch.Tensor:
    """The fragment of a stepped tensor. A whole parameter keeps its shape: it need not be contiguous."""
    if fragment.length == tensor.numel():
        return tensor
    return tensor.view(-1)[fragment.offset : fragment.offset + fragment.length]


def full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Shape of the whole parameter; a parameter that ZeRO-3 has partitioned has an empty shape itself."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def replicated_masters(optimizer: Any, zero_stage: int) -> dict[int, torch.Tensor]:
    """Stage 0 in bf16: id of each weight -> its fp32 master. Empty in fp32, where the weight is its own master."""
    if zero_stage != 0 or not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {id(p): master for weights, masters in pairs for p, master in zip(weights, masters, strict=True)}


def stepped_tensors(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    """Each tensor that this rank's inner optimizer steps, with its fragments; the rest of it is padding."""
    match engine.zero_stage:
        case 0:
            masters = replicated_masters(engine.optimizer, engine.zero_stage)
            for p in engine.trainable_parameters().values():
                yield masters.get(id(p), p), [Fragment(p, 0, 0, p.numel())]
        case 1 | 2:
            yield from _flat_groups(engine)
        case _:
            yield from _flat_pieces(engine)


def _flat_groups(engine: "Engine") -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
    optimizer = engine.optimizer
    if hasattr(optimizer, "bf16_groups"):  # DeepSpeed's choice at stage 1 for sums in float32
        groups = zip(optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, strict=True)
    else:
        groups = zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True)
    for flat, parameters in groups:
        mapped = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]
        places = [(p, mapping.hp_fragment_address, mapping.lp_fragment_address) for p, mapping in mapped]
        yield flat, [Fragment(p, hp.start, lp.start, hp.numel) for p, hp, lp in places]


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
