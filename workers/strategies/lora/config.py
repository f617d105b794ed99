"""The settings of LoRA, and the matrices of a model that they name. Nothing requested is silently left out."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.settings import NewSwitch
from workers.strategies.lora.matrices import Matrix, find_matrices
from workers.strategy import StrategySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY = "training.strategy"


class LoraStrategyConfig(StrategySettings):
    """Train low-rank adapters on matrices of the model and freeze everything else."""

    type: Literal["lora"] = "lora"
    """LoRA adapters."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters: their update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input, as a fraction; peft does not support it for experts and routers."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the matrices that get an adapter (the last parts of their names in the model, such as q_proj, lm_head or
    experts.down_proj), or `all-linear`: every linear matrix of the decoder, including experts and routers, except the
    output head. `raymix check` prints which matrices these are."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules to train in full in addition to the adapters, such as lm_head or embed_tokens."""
    use_qlora: NewSwitch = False
    """Store the frozen linear layers of the decoder in 4 bits (QLoRA, arXiv 2305.14314; NF4 with double quantisation,
    by bitsandbytes): a quarter of their memory, slower passes, and a base model whose weights are rounded. The exported
    model has these rounded weights in model.dtype, as it was trained. Not at ZeRO stage 3."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of each matrix separately (DoRA, arXiv 2402.09353); not for experts and routers."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Different ranks for some matrices: last part of a name, or a regular expression -> rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Different alphas for some matrices, in the same form."""

    @model_validator(mode="after")
    def _names_make_sense(self) -> Self:
        if self.target_modules == []:
            raise ValueError("target_modules is empty; name matrices, or leave the key out for all-linear")
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
        if self.target_modules != "all-linear":
            both = sorted(set(self.target_modules) & set(self.modules_to_save))
            if both:
                raise ValueError(
                    f"{both[0]!r} is in both target_modules and modules_to_save; an adapter on a module that is "
                    "trained in full has no effect, so remove it from one of them"
                )
        return self


def find_targets(model: "PreTrainedModel", config: LoraStrategyConfig) -> list[Matrix]:
    """The matrices that get an adapter; ValueError if a name matches nothing, or peft has no adapter for a matrix."""
    matrices = find_matrices(model)
    if config.target_modules == "all-linear":
        saved = [f".{name}." for name in config.modules_to_save]
        fitting = [m for m in matrices if m.is_linear and m.refusal is None]
        chosen = [m for m in fitting if not any(name in f".{m.name}." for name in saved)]
        if not chosen:
            raise ValueError(f"{_KEY}.target_modules: this model has no linear matrix that can have an adapter")
    else:
        chosen = _by_name(matrices, config.target_modules, model)
    _check_kinds(chosen, config)
    _check_modules_to_save(model, config)
    _check_patterns(config, chosen)
    return chosen


def _check_modules_to_save(model: "PreTrainedModel", config: LoraStrategyConfig) -> None:
    """Refuse names in `modules_to_save` that match no module."""
    modules = [name for name, _ in model.named_modules() if name]
    for wanted in config.modules_to_save:
        if not any(_ends_with(name, wanted) for name in modules):
            raise ValueError(f"{_KEY}.modules_to_save: the model has no {wanted!r}{_nearest(wanted, modules)}")


def _check_patterns(config: LoraStrategyConfig, targets: Sequence[Matrix]) -> None:
    """Refuse keys of `rank_pattern` and `alpha_pattern` that match no matrix with an adapter."""
    names = [_name_for_patterns(target) for target in targets]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):  # peft's rule
                raise ValueError(f"{_KEY}.{key}: {pattern!r} matches no adapter{_nearest(pattern, names)}")


def _by_name(matrices: list[Matrix], wanted: Iterable[str], model: "PreTrainedModel") -> list[Matrix]:
    chosen: dict[str, Matrix] = {}
    for name in wanted:
        matching = [m for m in matrices if _ends_with(m.module, name) or _ends_with(m.name, name)]
        if not matching:
            raise ValueError(_unmatched(name, matrices, model))
        for matrix in matching:
            if matrix.refusal:
                raise ValueError(f"{_KEY}.target_modules: {name!r}: {matrix.refusal}; remove it")
        chosen |= {matrix.name: matrix for matrix in matching}
    return list(chosen.values())


def _unmatched(name: str, matrices: list[Matrix], model: "PreTrainedModel") -> str:
    kinds = {type(module).__name__ for path, module in model.named_modules() if path and _ends_with(path, name)}
    what = f"{name!r} is a {min(kinds)}, which is not a matrix" if kinds else f"the model has no {name!r}"
    owners = [_name_for_patterns(matrix) for matrix in matrices]
    return f"{_KEY}.target_modules: {what}{_nearest(name, owners)}"


def _check_kinds(targets: list[Matrix], config: LoraStrategyConfig) -> None:
    """Refuse options that peft does not support for matrices addressed as parameters."""
    parameters = [target for target in targets if target.is_parameter]
    for key, is_on in (("dropout", config.dropout > 0), ("use_dora", config.use_dora)):
        if is_on and parameters:
            raise ValueError(
                f"{_KEY}.{key}: peft supports it only for linear layers, not for {len(parameters)} of the "
                f"{len(targets)} matrices (experts, routers, and modules with their names), first "
                f"{parameters[0].name}; remove {key}, or name other matrices in target_modules"
            )


def _name_for_patterns(matrix: Matrix) -> str:
    return matrix.name if matrix.is_parameter else matrix.module


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _nearest(wanted: str, names: Iterable[str]) -> str:
    """The most similar names, or some of the existing ones."""
    depth = wanted.count(".") + 1
    # The last informative part of a name, which is neither `weight` nor a number.
    endings = {name.removesuffix(".weight") for name in names}
    short = sorted({".".join(name.split(".")[-depth:]) for name in endings} - {""})
    short = [name for name in short if not name.rpartition(".")[2].isdigit()]
    close = difflib.get_close_matches(wanted, short, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(close)}" if close else f"; there are {', '.join(short[:12])}"
