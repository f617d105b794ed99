"""The types that cross processes: domain weights one way, domain feedback the other.

They are plain frozen pydantic models, so that what travels is also what is written to disk
(`weights/*.json`, `feedback/*.json`) and what is checked when it is read back.
"""

import math
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.clock import TIME_PATTERN

SHARE_SUM_TOLERANCE = 1e-9

Share = Annotated[float, Field(ge=0.0, le=1.0 + SHARE_SUM_TOLERANCE, allow_inf_nan=False)]


class DomainWeights(BaseModel):
    """One version of the mixture: the share of each domain as of `effective_step`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=0, description="Position in the journal, counted from 0.")
    effective_step: int = Field(ge=1, description="First optimizer step (counted from 1) that uses these shares.")
    shares: dict[str, Share] = Field(min_length=1, description="Share of each domain; they sum to 1.")
    reason: Literal["initial", "algorithm", "operator"] = Field(description="What created this version.")
    by: str = Field(description="Name of the algorithm or of the user.")
    why: str = Field(default="", description="The user's reason.")
    request: str = Field(default="", description="Id of the user's request.")
    pinned: list[str] = Field(default_factory=list, description="Domains whose share the algorithm may not change.")
    paused: bool = Field(default=False, description="Whether the algorithm's answers are ignored.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        total = math.fsum(self.shares.values())
        if abs(total - 1.0) > SHARE_SUM_TOLERANCE:
            raise ValueError(f"weights version {self.version}: shares sum to {total!r}, not 1: {self.shares}")
        return self


class Change(BaseModel):
    """How a domain's loss differs between two evaluations of the same examples, in nats per loss token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats: float = Field(allow_inf_nan=False, description="The later loss minus the earlier one.")
    standard_error: float = Field(ge=0, allow_inf_nan=False, description="Of the paired difference.")


class DomainFeedback(BaseModel):
    """What one evaluation measured: per domain the sum of the loss in nats and the number of loss tokens.

    Sums and counts, never means: divide last (`loss_nats`). The errors tell changes from noise
    (`workers.validation.loss_statistics`); feedback of older runs has none.
    """

    # A loss may be NaN or infinite, which JSON cannot express: written as strings.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    run_id: str = Field(description="Id of the run; feedback of another run is refused.")
    attempt: int = Field(ge=1, description="Number of the attempt that measured it; lower ones are fenced out.")
    step: int = Field(ge=0, description="Optimizer steps done when it was measured; 0 is the base model.")
    weights_version: int = Field(ge=0, description="Version with which the last step before it was trained.")
    loss_sum_nats: dict[str, float] = Field(description="Sum of the loss over the loss tokens, in nats.")
    num_tokens: dict[str, int] = Field(description="Number of loss tokens.")
    num_examples: dict[str, int] = Field(default_factory=dict, description="Held-out examples that were measured.")
    num_held_out: dict[str, int] = Field(default_factory=dict, description="Held-out examples in all.")
    standard_error_nats: dict[str, float] = Field(
        default_factory=dict, description="Standard error as an estimate of the domain's loss; absent if unknown."
    )
    sampling_error_nats: dict[str, float] = Field(
        default_factory=dict,
        description="The same as an estimate of the whole held-out set's loss; 0 if all was measured.",
    )
    change_from_first: dict[str, Change] = Field(
        default_factory=dict, description="Loss minus that of step 0, paired over the examples; empty at step 0."
    )
    change_from_previous: dict[str, Change] = Field(
        default_factory=dict, description="Loss minus that of the previous evaluation, paired over the examples."
    )
    signals: dict[str, dict[str, float]] = Field(default_factory=dict, description="Signal -> domain -> value.")
    evaluation_seconds: float = Field(default=0.0, ge=0, description="Time spent on measuring the losses.")
    signal_seconds: float = Field(default=0.0, ge=0, description="Time spent on measuring the signals.")
    time: str | None = Field(default=None, pattern=TIME_PATTERN, description="When it was measured, in UTC.")

    def loss_nats(self, domain: str) -> float:
        """Mean loss of a domain in nats per loss token; NaN if nothing was measured."""
        num_tokens = self.num_tokens.get(domain, 0)
        return self.loss_sum_nats.get(domain, math.nan) / num_tokens if num_tokens > 0 else math.nan


ERROR_FIELDS = (
    "num_examples",
    "num_held_out",
    "standard_error_nats",
    "sampling_error_nats",
    "change_from_first",
    "change_from_previous",
)
"""Fields that describe the losses of the same feedback; each may lack some or all domains."""


class WeightsSource(Protocol):
    """Where a training loop gets its weights and sends its measurements.

    The controller that keeps its journal in a folder is one implementation, the handle of its Ray actor another.
    """

    def open_attempt(self) -> int:
        """Begin a new attempt and return its number, durably; pushes of lower attempts are refused from now on."""

    def history(self) -> list[DomainWeights]:
        """All versions of the journal so far, oldest first."""

    def pull(self, step: int) -> DomainWeights | None:
        """The version for `step`, which no later version may claim afterwards; None: stop before this step."""

    def push(self, feedback: DomainFeedback) -> DomainWeights:
        """Submit one evaluation and return the version for the next step. Idempotent."""
