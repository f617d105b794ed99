"""A run of one training, or of a plan of stages, each an ordinary run that starts where another ended."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from orchestrator.config.predefined_plans import expand
from orchestrator.config.run import RunConfig
from orchestrator.config.stages import AnyPlan, StageConfig
from workers.config.data import DomainConfig
from workers.nearest import refuse_unknown

_BUDGETS = ("epochs", "max_steps", "max_tokens")
_TRAINING_KEYS = ("strategy", "learning_rate", "schedule", "warmup_fraction")


class PlanConfig(RunConfig):
    """What `raymix run` trains."""

    stages: Annotated[list[StageConfig] | AnyPlan, AfterValidator(expand)] = Field(default_factory=list)
    """An ordered plan of stages, each an ordinary run that starts where another ended: a list, or the name of a
    predefined plan (multi_task, sequential, mixed_sequential, dmt) with its settings."""

    @property
    def stage_list(self) -> list[StageConfig]:
        """The stages in order; empty if the run is one training."""
        return expand(self.stages)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.stages and self.start is not None:
            raise ValueError("start: the first stage of a plan starts from the base model; remove start or stages")
        _check_stages(self, self.stage_list)
        return self


def _check_stages(config: PlanConfig, stages: Sequence[StageConfig]) -> None:
    """ValueError for a plan that cannot be run, naming the key of the stage, what is wrong and what to change."""
    for index, stage in enumerate(stages):
        key, earlier = f"stages[{index}]", [other.name for other in stages[:index]]
        if stage.name in earlier:
            raise ValueError(f"{key}.name: {stage.name!r} is already the name of another stage; use unique names")
        if stage.start not in ("base", "previous", *earlier):
            raise ValueError(f"{key}.start: {stage.start!r} is not base, previous, or one of {earlier}")
        refuse_unknown(f"{key}.domains", stage.domains or {}, config.domains)
        trained = config.trained_domains
        measured = [name for name, amount in _amounts(config, stage).items() if amount and name not in trained]
        if measured:
            raise ValueError(f"{key}.domains: {measured} have no training data in this run; add `train` to them")
        parent = find_parent(stages, index)
        try:
            run = stage_run(config, stage)
        except ValidationError as error:
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{key}: is not valid as a run: {fault}") from None
        if stage.optimizer == "kept":
            if parent is None:
                raise ValueError(
                    f"{key}.optimizer: a stage that starts from the base model has none to keep; use fresh"
                )
            if stage_run(config, stages[parent]).training.strategy != run.training.strategy:
                raise ValueError(
                    f"{key}.optimizer: {stages[parent].name!r} trains other parameters (another strategy), so its "
                    "moments do not apply here; use fresh, or the same strategy"
                )


def find_parent(stages: Sequence[StageConfig], index: int) -> int | None:
    """Index of the stage that a stage starts from; None for the base model."""
    match stages[index].start:
        case "base":
            return None
        case "previous":
            return index - 1 if index else None
        case name:
            return [stage.name for stage in stages].index(name)


def stage_run(config: PlanConfig, stage: StageConfig) -> RunConfig:
    """The stage as an ordinary run, without the run that it starts from and without the digest in its name.

    ValueError if the stage's settings do not fit together.
    """
    domains = {name: _take(config.domains[name], amount) for name, amount in _amounts(config, stage).items()}
    trained = [name for name, domain in domains.items() if domain.is_trained]
    changed = {key: value for key in _TRAINING_KEYS if (value := getattr(stage, key)) is not None}
    budget = {key: getattr(stage, key) for key in _BUDGETS}
    if any(value is not None for value in budget.values()):
        changed |= budget
    own = {name: getattr(config, name) for name in config.model_fields_set & RunConfig.model_fields.keys()}
    return RunConfig.model_validate(
        own
        | {
            "name": stage.name,
            "seed": config.seed if stage.seed is None else stage.seed,
            "output_dir": config.output_dir / "stages",
            "data": config.data.replaced(cache_dir=config.cache_dir),
            "domains": domains,
            "mixing": (stage.mixing or config.mixing).restricted_to(trained),
            "training": config.training.replaced(**changed),
        }
    )


def _amounts(config: RunConfig, stage: StageConfig) -> dict[str, float]:
    """The amount of every domain, in the run's order; 0 for those that are only measured."""
    given = dict.fromkeys(config.trained_domains, 1.0) if stage.domains is None else stage.domains
    return {name: given.get(name, 0.0) for name in config.domains}


def _take(domain: DomainConfig, amount: float) -> DomainConfig:
    """The domain cut to an amount; a fraction is relative to what the run uses of the domain."""
    if amount == 1:
        return domain
    if amount > 1:
        return domain.replaced(fraction=1.0, count=int(amount))
    if domain.count and amount:
        return domain.replaced(count=max(1, round(amount * domain.count)))
    return domain.replaced(fraction=amount * domain.fraction, count=None)
