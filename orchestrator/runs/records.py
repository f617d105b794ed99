"""What a run records besides its numbers: the lines of events.jsonl, summary.json, and data.json.

data.json holds the counts and findings of every domain, as `raymix check --json` prints them too.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.data.report import Report

DATA_FILE = "data.json"
Severity = Literal["error", "warning", "note"]
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

Differences within noise do not count (is_beyond_noise in orchestrator/runs/verdict.py).
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
    attention: str = ""
    refused_attention: dict[str, str] = {}


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


class Record(BaseModel):
    """Plain data. Not `Settings`, whose use of docstrings as descriptions costs 20 ms per class."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(Record):
    """Something that the user should know before the run."""

    severity: Severity
    """`error` keeps the run from starting; `warning` is likely to do harm; `note` reports what was asked for."""
    kind: str
    """For filtering: bad_rows, too_long, excluded, not_chosen, duplicates, shared, same_file, leak, dropped, ..."""
    where: str
    """The configuration key that it concerns, e.g. domains.law; empty if there is none."""
    message: str
    """What was found, with numbers."""

    @property
    def line(self) -> str:
        """The message, preceded by the name of its domain."""
        domain = self.where.removeprefix("domains.")
        return self.message if domain == self.where else f"{domain}: {self.message}"


class StoreCounts(Record):
    """One side of a domain, as used for training or for evaluation."""

    num_examples: int
    """Examples; a row of a file is one, or several with `data.too_long: split`."""
    num_distinct: int
    """Examples that differ in token ids or targets."""
    num_prompts: int
    """Distinct prompts, ignoring case and spacing."""
    num_rows: int
    """Sequences of the token store; with packing, one may contain several examples."""
    num_tokens: int
    """Tokens without padding."""
    num_targets: int
    """Tokens that count for the loss."""

    @property
    def num_repeats(self) -> int:
        """Examples that repeat another."""
        return self.num_examples - self.num_distinct


class DomainCounts(Record):
    """What happened to a domain's rows."""

    train: StoreCounts | None
    """None for a domain that is only measured."""
    eval: StoreCounts
    """The held-out examples."""
    train_files: Report
    """Rows of the training files, including those set aside for evaluation."""
    eval_files: Report
    """Rows of the evaluation files."""
    num_leaked_prompts: int = 0
    """Held-out prompts that occur in the training data of this or any other domain."""
    leaked_prompts: dict[str, int] = Field(default_factory=dict)
    """The same by the domain in whose training data they occur."""
    num_shared_examples: int = 0
    """Distinct training examples that another domain trains on too."""
    shared_examples: dict[str, int] = Field(default_factory=dict)
    """The same by the other domain."""

    @property
    def report(self) -> Report:
        return Report.merged([self.train_files, self.eval_files])


class DataRecord(Record):
    """data.json: a run's data as it was when the run started."""

    domains: dict[str, DomainCounts]
    findings: list[Finding]
