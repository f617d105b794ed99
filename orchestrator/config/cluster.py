"""Where a run's workers are."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from workers.settings import Settings


class ClusterConfig(Settings):
    """Where the run's workers are."""

    address: str = "local"
    """`local` starts Ray on this machine, `auto` joins the cluster that this machine belongs to, and host:port joins
    the cluster with that head node."""
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Training workers, one rank each."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs per worker; 0 trains on the CPU."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs per worker."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment (pip, env_vars, image_uri, ...) for the run's processes on a cluster that it joins."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a lost worker group is restarted from the last checkpoint before the run fails."""
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
