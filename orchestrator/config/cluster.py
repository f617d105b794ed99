"""Where a run's workers are."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from workers.config.training import TrainingConfig
from workers.settings import Settings


class WorkerRange(Settings):
    """An elastic group: as many workers as the cluster's nodes hold, within these bounds.

    Only numbers among which a step's sequences can be divided are used.
    """

    min: Annotated[int, Field(ge=1)]
    """The fewest; with less room the run waits."""
    max: Annotated[int, Field(ge=2)]
    """The most."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max <= self.min:
            raise ValueError(f"max {self.max} is not above min {self.min}; raise max, or give one number: {self.min}")
        return self


def _kind(value: Any) -> str:
    return "range" if isinstance(value, dict | WorkerRange) else "number"


NumWorkers = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[WorkerRange, Tag("range")], Discriminator(_kind)
]


class ClusterConfig(Settings):
    """Where the run's workers are."""

    address: str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster that this machine belongs to, and host:port joins
    the cluster with that head node."""
    num_workers: NumWorkers = 1
    """Training workers, one rank each; `{min: 2, max: 8}` for an elastic group, which shrinks when a node is lost and
    grows at a checkpoint when one comes."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs per worker; 0 trains on the CPU."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs per worker. With `address: local` and without GPUs, workers share all cores of the machine, if these are
    more."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment (pip, env_vars, image_uri, ...) for the run's processes on a cluster that it joins."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a lost worker group is restarted from the last checkpoint before the run fails; for an elastic group,
    how often without a new checkpoint in between."""
    hang_seconds: Annotated[float, Field(ge=1)] = 60
    """A worker that reports nothing for this many seconds, or, while it trains or evaluates, shows no progress for that
    long and for ten median steps, is killed and counts as lost; a controller that does not answer is restarted."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(
                f"is {value:g}; above one, Ray takes whole GPUs only: use {int(value)} or {int(value) + 1}"
            )
        return value

    @property
    def min_workers(self) -> int:
        """The fewest workers with which the run trains."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max

    def group_sizes(self, training: TrainingConfig) -> list[int]:
        """The sizes that the worker group can have, smallest first: the numbers of workers, each with whole micro
        batches, among which a step's sequences can be divided, or all slices of each."""
        sizes = range(self.min_workers, self.max_workers + 1)
        return [size for size in sizes if training.divides_among(size)]
