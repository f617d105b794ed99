"""Names of the configuration -> matrices of the model. Nothing that is asked for is left out in silence."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from workers.strategies.lora.config import LoraStrategyConfig
from workers.strategies.lora.matrices import Matrix, find_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEY = "training.strategy"


def find_targets(model: "PreTrainedModel", config: LoraStrategyConfig) -> list[Matrix]:
    """The matrices that get an adapter.

    Raises:
        ValueError: a name that matches nothing, or a matrix that peft has no such adapter for.
    """
    matrices = find_matrices(model)
    if config.target_modules == "all-linear":
        chosen = [m for m in matrices if m.is_linear and m.refusal is None and not _is_saved(m, config)]
        if not chosen:
            raise ValueError(f"{_KEY}.target_modules: this model has no linear matrix that an adapter fits")
    else:
        chosen = _by_name(matrices, config.target_modules, model)
    _check_kinds(chosen, config)
    return chosen


def check_modules_to_save(model: "PreTrainedModel", config: LoraStrategyConfig) -> None:
    """Refuse names in `modules_to_save` that no module has."""
    modules = [name for name, _ in model.named_modules() if name]
    for wanted in config.modules_to_save:
        if not any(_ends_with(name, wanted) for name in modules):
            raise ValueError(f"{_KEY}.modules_to_save: the model has no {wanted!r}{_nearest(wanted, modules)}")


def check_patterns(config: LoraStrategyConfig, targets: Sequence[Matrix]) -> None:
    """Refuse keys of `rank_pattern` and `alpha_pattern` that match no matrix with an adapter."""
    names = [_name_for_patterns(target) for target in targets]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key):
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):  # as peft matches
                raise ValueError(f"{_KEY}.{key}: {pattern!r} matches no adapter{_nearest(pattern, names)}")


def _by_name(matrices: list[Matrix], wanted: Iterable[str], model: "PreTrainedModel") -> list[Matrix]:
    chosen: dict[str, Matrix] = {}
    for name in wanted:
        matching = [m for m in matrices if _ends_with(m.module, name) or _ends_with(m.name, name)]
        if not matching:
            raise ValueError(_unmatched(name, matrices, model))
        for matrix in matching:
            if matrix.refusal:
                raise ValueError(f"{_KEY}.target_modules: {name!r}: {matrix.refusal}; leave it out")
        chosen |= {matrix.name: matrix for matrix in matching}
    return list(chosen.values())


def _unmatched(name: str, matrices: list[Matrix], model: "PreTrainedModel") -> str:
    kinds = {type(module).__name__ for path, module in model.named_modules() if path and _ends_with(path, name)}
    what = f"{name!r} is a {min(kinds)}, which is no matrix" if kinds else f"the model has no {name!r}"
    owners = [_name_for_patterns(matrix) for matrix in matrices]
    return f"{_KEY}.target_modules: {what}{_nearest(name, owners)}"


def _check_kinds(targets: list[Matrix], config: LoraStrategyConfig) -> None:
    """What peft cannot do for matrices that it knows as parameters only."""
    parameters = [target for target in targets if target.is_parameter]
    for key, is_on in (("dropout", config.dropout > 0), ("use_dora", config.use_dora)):
        if is_on and parameters:
            raise ValueError(
                f"{_KEY}.{key}: peft has it for linear layers only, not for {len(parameters)} of the {len(targets)} "
                f"matrices (experts, routers, and what bears their names), first {parameters[0].name}; leave {key} "
                "out, or name other matrices in target_modules"
            )


def _is_saved(matrix: Matrix, config: LoraStrategyConfig) -> bool:
    return any(f".{name}." in f".{matrix.name}." for name in config.modules_to_save)


def _name_for_patterns(matrix: Matrix) -> str:
    return matrix.name if matrix.is_parameter else matrix.module


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _nearest(wanted: str, names: Iterable[str]) -> str:
    """The names that a misspelt one may stand for, or those that there are."""
    depth = wanted.count(".") + 1
    # A name's last part that says something: `weight` is that of all, and a number that of none.
    endings = {name.removesuffix(".weight") for name in names}
    short = sorted({".".join(name.split(".")[-depth:]) for name in endings} - {""})
    short = [name for name in short if not name.rpartition(".")[2].isdigit()]
    close = difflib.get_close_matches(wanted, short, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(close)}" if close else f"; there are {', '.join(short[:12])}"
