"""The predefined plans, expanded to ordinary stages (arXiv 2310.05492, section 3.5)."""

from collections.abc import Mapping, Sequence

from orchestrator.config.stages import (
    DmtPlan,
    MixedSequentialPlan,
    MultiTaskPlan,
    SequentialPlan,
    StageConfig,
    StageSettings,
)

Plan = MultiTaskPlan | SequentialPlan | MixedSequentialPlan | DmtPlan


def expand(stages: Plan | list[StageConfig]) -> list[StageConfig]:
    """The stages of a predefined plan, in order, or the given list; ValueError if the plan names a domain twice."""
    match stages:
        case MultiTaskPlan(domains=domains):
            return _chain(stages, {"multi-task": _all_of(domains) if domains else None})
        case SequentialPlan(order=order):
            _check_once(order)
            return _chain(stages, {name: {name: 1.0} for name in order})
        case MixedSequentialPlan(specialised=specialised, general=general):
            _check_once([*specialised, *general])
            return _chain(stages, {"specialised": _all_of(specialised), "general": _all_of(general)})
        case DmtPlan(specialised=specialised, general=general, k=k):
            _check_once([*specialised, *general])
            fractions = k if isinstance(k, dict) else dict.fromkeys(specialised, k)
            replay = {name: fractions[name] for name in specialised if fractions[name] > 0}
            second = "general-replay" if replay else "general"
            return _chain(stages, {"specialised": _all_of(specialised), second: _all_of(general) | replay})
        case _:
            return stages


def _chain(plan: Plan, domains: Mapping[str, dict[str, float] | None]) -> list[StageConfig]:
    """Stages by name, each starting from the one before; the first has no optimizer state to keep."""
    settings = {key: getattr(plan, key) for key in StageSettings.model_fields}
    stages = [StageConfig(name=name, domains=amounts, **settings) for name, amounts in domains.items()]
    first = stages[0].replaced(start="base", optimizer="fresh")
    return [first, *stages[1:]]


def _all_of(names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def _check_once(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"the plan names {twice} twice; name each domain once")
