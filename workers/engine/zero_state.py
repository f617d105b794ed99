"""Masters and Adam moments in the four ways (ZeRO stages 0 to 3) in which DeepSpeed keeps them.

`TrainedState` reads and replaces them whole; it is a collective: every rank makes the same calls in the same order.
`stepped_tensors` says where each parameter is in the flat fp32 tensors that the inner optimizer steps.
At stage 0 the optimizer steps whole parameters (in bf16 their fp32 masters). At stages 1 and 2 a rank steps one flat
piece of all parameters of a group; at stage 3 flat pieces, at least one per group, of this rank's part of each
parameter, padded if the parameter is not divisible by the ranks.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workers.strategy import Fragment

if TYPE_CHECKING:
    from workers.engine.engine import Engine

_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedState:
    """The fp32 master and the two Adam moments of each trainable parameter, as whole tensors, by name."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._optimizer = engine.optimizer
        # Stage 0 in fp32 has no wrapper around torch's AdamW.
        self._inner: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._parameters = engine.trainable_parameters()
        self._masters = replicated_masters(engine.optimizer, engine.zero_stage)
        self.shapes = {name: full_shape(p) for name, p in self._parameters.items()}
        self._relink()

    def materialise(self) -> None:
        """Make the optimizer create its state, with arbitrary values: DeepSpeed and Adam do so at the first step."""
        from workers.data.batches import MeasuredRow, collate

        zeros = np.zeros(2, dtype=np.int64)
        batch, _ = collate([MeasuredRow(0, 0, zeros, np.arange(2), np.array([False, True]), zeros)], num_domains=1)
        self._engine.forward_backward(replace(batch, global_loss_tokens=self._engine.world_size), num_domains=1)
        self._engine.step(learning_rate=0.0)
        self._relink()

    def get(self, name: str) -> list[torch.Tensor]:
        """Master and moments of one parameter."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        p = self._parameters[name]
        if self._engine.zero_stage == 0:
            master = self._masters.get(id(p), p)
            return [master.data, *(self._inner.state[master][key] for key in _MOMENTS)]
        return [safe_get_full_fp32_param(p), *(safe_get_full_optimizer_state(p, key) for key in _MOMENTS)]

    def set(self, name: str, tensors: list[torch.Tensor]) -> None:
        """Replace master and moments; `publish` then updates the model's weights."""
        p = self._parameters[name]
        if self._engine.zero_stage == 0:
            master = self._masters.get(id(p), p)
            for old, new in zip(self.get(name), tensors, strict=True):
                old.copy_(new)
            p.data.copy_(master.data)
        elif self._engine.zero_stage == 3:
            self._set_partition(p, tensors)
        else:
            from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

            safe_set_full_fp32_param(p, tensors[0])
            for key, tensor in zip(_MOMENTS, tensors[1:], strict=True):
                safe_set_full_optimizer_state(p, tensor, key)

    def publish(self) -> None:
        """Copy the masters to the weights used for computation, which DeepSpeed does not do."""
        if self._engine.zero_stage in (1, 2):
            self._optimizer.update_lp_params()

    def adam_step(self) -> int:
        """Updates done so far, which Adam's bias correction needs."""
        return int(next(iter(self._inner.state.values()))["step"])

    def set_adam_step(self, step: int) -> None:
        for state in self._inner.state.values():
            state["step"].fill_(step)

    def _set_partition(self, p: Any, tensors: list[torch.Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        # DeepSpeed's safe_set_full_* fails if the last rank's partition is padded.
        length = p.ds_tensor.ds_numel
        start = self._engine.rank * length
        pieces = []
        for tensor in tensors:
            piece = torch.zeros(length, dtype=torch.float32, device=tensor.device)
            mine = tensor.flatten()[start : start + length]
            piece[: mine.numel()] = mine
            pieces.append(piece)
        safe_set_local_fp32_param(p, pieces[0])
        for key, piece in zip(_MOMENTS, pieces[1:], strict=True):
            safe_set_local_optimizer_state(p, piece, key)
        with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
            p.data.copy_(tensors[0])

    def _relink(self) -> None:
        # Stages 1 and 2 link optimizer state only after the first group's step: the second group's is not found.
        if hasattr(self._optimizer, "_lazy_init_hp_params_optimizer_state") and self._inner.state:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()


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
