"""A run of one training, or of a plan of stages, each starting where another ended."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.config.predefined_plans import expand
from orchestrator.config.run import RunConfig
from orchestrator.config.stage_runs import check_stages
from orchestrator.config.stages import AnyPlan, StageConfig


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
        check_stages(self, self.stage_list)
        return self
