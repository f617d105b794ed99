"""A run of one training, or of several that start where another ended: a plan of stages."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.config.plans import expand
from orchestrator.config.run import RunConfig
from orchestrator.config.stage_runs import check_stages
from orchestrator.config.stages import AnyPlan, StageConfig


class PlanConfig(RunConfig):
    """What `raymix run` trains."""

    stages: Annotated[list[StageConfig] | AnyPlan, AfterValidator(expand)] = Field(default_factory=list)
    """An ordered plan of stages, each an ordinary run that starts where another ended: a list, or a ready-made plan
    by name (multi_task, sequential, mixed_sequential, dmt), which stands for one."""

    @property
    def stage_list(self) -> list[StageConfig]:
        """The stages in order; empty where the run is one training."""
        return expand(self.stages)

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.stages and self.start is not None:
            raise ValueError("start: a plan's first stage starts from the base model; leave out start or stages")
        check_stages(self, self.stage_list)
        return self
