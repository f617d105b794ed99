"""What a run records besides its numbers: the lines of events.jsonl, and summary.json."""

from typing import Literal

from pydantic import BaseModel

Verdict = Literal["improved", "mixed", "ended_worse", "worse_than_base", "unchanged", "diverged", "not_measured"]
"""The outcome of a run. The base is the model that it started from, as measured at step 0. Losses are held-out losses;
the one that decides is that of `best.criterion`.

    improved         the end beats the base, and no domain ends worse
    mixed            likewise, but some domains end worse than the base
    ended_worse      an evaluated step beats the base, but the end does not
    worse_than_base  no evaluated step beats the base: `best.step` is 0 and there is no `best/`
    unchanged        no domain's loss differs at the end from the start
    diverged         the training loss rose permanently, or a loss is not finite at the end
    not_measured     there is nothing to compare: no evaluation of the base, or none after it

Differences within noise do not count (orchestrator/runs/noise.py).
"""


class Event(BaseModel):
    """One line of events.jsonl: something that the user should know."""

    step: int | None = None
    time: str | None = None
    """In UTC; None in the files of older versions."""
    kind: str
    message: str = ""


class ReferenceCourse(BaseModel):
    """Progress of the training on one domain alone; held-out losses in nats per token."""

    step: int
    total_steps: int
    loss_nats: float | None = None
    """At the last evaluation."""
    loss_nats_base: float | None = None


class ReferenceProgress(BaseModel):
    """reference-progress.json: exists while a run waits for its reference losses."""

    time: str
    seconds_left: float | None = None
    """For all domains; None before the first steps."""
    domains: dict[str, ReferenceCourse]


class LossCourse(BaseModel):
    """A loss in nats per token at the start, at the best evaluation and at the end; None if not measured."""

    start: float | None = None
    best: float | None = None
    end: float | None = None


class DomainSummary(BaseModel):
    """The outcome for one domain: held-out losses in nats per token, shares, and how much of it was trained on."""

    loss_nats_start: float | None = None
    loss_nats_best: float | None = None
    loss_nats_end: float | None = None
    loss_nats_lowest: float | None = None
    """The domain's own lowest loss, the base included; `best` is the evaluation that is best for all domains."""
    lowest_step: int | None = None
    lowest_epochs: float | None = None
    """Passes over the domain up to that step."""
    is_worse_than_base: bool | None = None
    """Whether it ends above the base's loss by more than noise; None if that was not measured."""
    is_past_lowest: bool | None = None
    """Whether it ends above its lowest loss during the run by more than noise."""
    share_initial: float | None = None
    share_final: float | None = None
    """The share of the last step; no step was trained with a version from the last evaluation."""
    share_mean: float | None = None
    rows_seen: int | None = None
    epochs: float | None = None
    num_bad_rows: int | None = None


class BestEvaluation(BaseModel):
    """The evaluation whose model is kept in `best/`; step 0 is the base, for which there is no `best/`."""

    step: int
    criterion: str
    loss_nats: float | None = None


class Divergence(BaseModel):
    """A training loss that rose permanently: means over stretches of steps, in nats per token, domains unweighted."""

    step: int
    """Last step of the stretch with the lowest loss."""
    loss_nats_lowest: float
    loss_nats_end: float


class IsolationRecord(BaseModel):
    """isolation.json: how packed examples were kept apart, and the measurements that verified it."""

    way: str
    difference_nats: float | None = None
    num_tokens: int = 0
    refused: dict[str, str] = {}


class RunSummary(BaseModel):
    """summary.json: written when the run ends."""

    name: str
    steps: int
    seconds: float
    num_tokens: int
    tokens_per_second: float
    weights_versions: int
    mixing_type: str
    verdict: Verdict | None = None
    """None in the files of older versions."""
    started_from: str | None = None
    """The run whose model is the base; None if it is the base model itself."""
    divergence: Divergence | None = None
    not_finite: list[str] = []
    """Domains whose last evaluation is not finite."""
    started_at: str | None = None
    ended_at: str | None = None
    """Time of the last record, in UTC; `started_at` is that of the first."""
    best: BestEvaluation | None = None
    isolation: IsolationRecord | None = None
    mean_loss_nats: LossCourse = LossCourse()
    worst_loss_nats: LossCourse = LossCourse()
    domains: dict[str, DomainSummary]
