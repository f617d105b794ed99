"""The soft mask, hooked into the inner optimizer: rows of important units change less.

`update` (default): W <- W + (1 - I) * dW, with dW the optimizer's whole update including weight decay. A row with I = 1
keeps its bits; one with I = 0 changes exactly as without a mask.
`gradient`: the gradient is multiplied by 1 - I between clipping and the optimizer's step; the clipped norm is that of
the unmasked gradient, as in the released code. Under Adam a constant factor cancels, so this has little effect.

The factors are flat tensors, built once for each tensor that a rank steps: no communication, and one copy of what is
stepped. DeepSpeed copies the result to the model's weights after the inner step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from workers.strategies.cofitune.architectures import TrainedParameter, trained_parameters
from workers.strategies.cofitune.config import CoFiTuneConfig
from workers.strategies.cofitune.importance import Importance, read_importance
from workers.strategy import Fragment

NUM_BINS = 10
_NO_BIN = NUM_BINS  # elements without importance: padding, other modules


class SteppingEngine(Protocol):
    """What the mask needs from the engine."""

    module: Any
    optimizer: Any
    device: torch.device

    def stepped_tensors(self) -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
        """Each tensor that this rank's inner optimizer steps, with its fragments; the rest of it is padding."""


@dataclass
class _Masked:
    """Factors, in its shape, of one tensor that the inner optimizer steps."""

    update: torch.Tensor | None
    gradient: torch.Tensor | None
    bins: torch.Tensor | None  # uint8
    before: torch.Tensor | None = None


def attach(engine: SteppingEngine, config: CoFiTuneConfig) -> "SoftMask | None":
    """Attach the mask to an engine; None if nothing is masked and every trained matrix is trained whole. ValueError if
    the importance is missing, or belongs to a model with other layers or units."""
    trained = list(trained_parameters(engine.module, config))
    shared = [t for t in trained if not t.is_trained_R.all()]
    if config.mask == "none":
        return SoftMask(engine, config.mask, trained, None) if shared else None
    if not config.importance.files:
        raise ValueError(
            f"training.strategy: mask {config.mask!r} needs importance, which was not measured; `raymix run` measures "
            "it before training. Otherwise give importance.files, or set mask: none"
        )
    importance = read_importance(config.importance.files)
    _check_shapes(importance, trained)
    return SoftMask(engine, config.mask, trained, importance)


class SoftMask:
    """Hooks before and after every step of the inner optimizer."""

    def __init__(
        self, engine: SteppingEngine, mask: str, trained: list[TrainedParameter], importance: Importance | None
    ) -> None:
        self._device = engine.device
        self._is_watching = False
        self._has_importance = importance is not None
        self._sums = torch.zeros(2, NUM_BINS, dtype=torch.float64)
        by_id = {id(t.parameter): t for t in trained}
        self._masked = {
            id(stepped): _build(stepped, fragments, by_id, mask, importance)
            for stepped, fragments in engine.stepped_tensors()
        }
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)  # stage 0 in fp32 has no wrapper
        inner.register_step_pre_hook(self._before_step)
        inner.register_step_post_hook(self._after_step)
        for t in trained:
            if not t.is_trained_R.all():
                _stop_gradient(t, engine.device)

    def watch(self) -> None:
        """Measure the steps until the next `observations`."""
        self._is_watching = self._has_importance

    def observations(self) -> dict[str, Any]:
        """`mask/mean_update/<bin>`: mean |change| of a weight by tenth of importance; a collective.

        Bin 0.3 is [0.3, 0.4); null if it has no trained weight. Empty without importance.
        """
        if not self._has_importance:
            return {}
        sums = self._sums.to(self._device)
        dist.all_reduce(sums)
        self._is_watching = False
        self._sums = torch.zeros_like(self._sums)
        change, count = sums.tolist()
        means = {f"{b / NUM_BINS:.1f}": change[b] / count[b] if count[b] else None for b in range(NUM_BINS)}
        return {"mask": {"mean_update": means}}

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p, masked in self._stepped(optimizer):
            if masked.gradient is not None:
                assert p.grad is not None
                p.grad.mul_(masked.gradient)
            if masked.update is not None or self._is_watching:
                masked.before = p.detach().clone()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p, masked in self._stepped(optimizer):
            if masked.before is None:
                continue
            if masked.update is not None:
                # lerp is exact at both ends: factor 0 gives the old bits, factor 1 the new ones.
                p.data.copy_(torch.lerp(masked.before, p.detach(), masked.update))
            if self._is_watching and masked.bins is not None:
                self._add_to_bins((p.detach() - masked.before).abs(), masked.bins)
            masked.before = None

    def _stepped(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, _Masked]]:
        """The tensors of this step: at stage 3 one piece after another has a gradient."""
        for group in optimizer.param_groups:
            yield from ((p, self._masked[id(p)]) for p in group["params"] if p.grad is not None)

    def _add_to_bins(self, change: torch.Tensor, bins: torch.Tensor) -> None:
        for b in range(NUM_BINS):
            is_in = bins == b
            self._sums[0, b] += change[is_in].sum(dtype=torch.float64).item()
            self._sums[1, b] += is_in.sum().item()


def row_importance(trained: TrainedParameter, importance: Importance) -> NDArray[np.float32]:
    """Importance of each row's head or neuron, (R,); NaN without one (the output projection).

    A key-value head is as important as the most important of its query heads, which are adjacent. Rows of the gate
    belong to the same intermediate neurons as those of `up`.
    """
    head_H, up_F, down_U = (importance[kind][trained.layer] for kind in ("head", "up", "down"))
    rows = np.full(len(trained.module_R), np.nan, dtype=np.float32)
    for module in np.unique(trained.module_R):
        is_row = trained.module_R == module
        units = trained.unit_R[is_row]
        match module:
            case "q":
                rows[is_row] = head_H[units]
            case "k" | "v":
                rows[is_row] = head_H.reshape(int(units.max()) + 1, -1).max(axis=1)[units]
            case "gate" | "up":
                rows[is_row] = up_F[units]
            case "down":
                rows[is_row] = down_U[units]
    return rows


def _build(
    stepped: torch.Tensor,
    fragments: list[Fragment],
    by_id: dict[int, TrainedParameter],
    mask: str,
    importance: Importance | None,
) -> _Masked:
    size, device = stepped.numel(), stepped.device
    update, gradient = torch.ones(size, device=device), torch.ones(size, device=device)
    bins = torch.full((size,), _NO_BIN, dtype=torch.uint8, device=device)
    for f in fragments:
        trained = by_id[id(f.parameter)]
        is_trained = torch.from_numpy(trained.is_trained_R)
        here = slice(f.offset, f.offset + f.length)
        free = torch.ones(len(is_trained))
        if importance is not None:
            rows = torch.from_numpy(row_importance(trained, importance))
            free = 1 - rows.nan_to_num(0.0)
            binned = (rows * NUM_BINS).floor().clamp(max=NUM_BINS - 1)
            no_bin = rows.isnan() | ~is_trained
            bins[here] = _fragment_of(binned.masked_fill(no_bin, _NO_BIN).to(torch.uint8), trained, f).to(device)
        on_update = free if mask == "update" else torch.ones_like(free)
        # A frozen part of a shared matrix must not be changed by weight decay either.
        update[here] = _fragment_of(on_update.where(is_trained, 0.0), trained, f).to(device)
        gradient[here] = _fragment_of(free, trained, f).to(device)
    return _Masked(
        update.view_as(stepped) if (update != 1).any() else None,
        gradient.view_as(stepped) if mask == "gradient" else None,
        bins.view_as(stepped) if importance is not None else None,
    )


def _fragment_of(rows: torch.Tensor, trained: TrainedParameter, fragment: Fragment) -> torch.Tensor:
    """The fragment's part of the row values, broadcast over the parameter."""
    whole = rows.view(_over_rows(trained)).expand(trained.shape).reshape(-1)
    return whole[fragment.start : fragment.start + fragment.length]


def _stop_gradient(trained: TrainedParameter, device: torch.device) -> None:
    """Zero the gradient of frozen rows in a shared matrix, so that they do not count in the clipped norm."""
    p = trained.parameter
    keep = torch.from_numpy(trained.is_trained_R).to(device).view(_over_rows(trained))
    p.register_hook(lambda gradient: gradient * keep)


def _over_rows(trained: TrainedParameter) -> list[int]:
    """The shape with which one value per row is broadcast over the parameter."""
    return [len(trained.is_trained_R) if axis == trained.axis else 1 for axis in range(len(trained.shape))]


def _check_shapes(importance: Importance, trained: list[TrainedParameter]) -> None:
    num_layers = len(importance["up"])
    for t in trained:
        for module in np.unique(t.module_R):
            units = int(t.unit_R[t.module_R == module].max()) + 1
            kind = {"q": "head", "k": "head", "v": "head", "gate": "up", "up": "up", "down": "down"}.get(str(module))
            if kind is None:
                continue
            there = importance[kind].shape[1]
            fits = there % units == 0 if module in ("k", "v") else there == units
            if not fits or t.layer >= num_layers:
                raise ValueError(
                    f"training.strategy.importance.files: not for this model: layer {t.layer} has {units} units "
                    f"in {module}, the file has {num_layers} layers of {there}; name files made with this base model"
                )
