"""What a run leaves to be read beside its numbers: the lines of events.jsonl and summary.json."""

from pydantic import BaseModel


class Event(BaseModel):
    """One line of events.jsonl: something that a person should know of."""

    step: int | None = None
    kind: str
    message: str = ""


class LossCourse(BaseModel):
    """A loss in nats per token at the start, at the best evaluation and at the end; None where not measured."""

    start: float | None = None
    best: float | None = None
    end: float | None = None


class DomainSummary(BaseModel):
    """What became of one domain."""

    loss_nats_start: float | None = None
    loss_nats_best: float | None = None
    loss_nats_end: float | None = None
    share_initial: float | None = None
    share_final: float | None = None
    share_mean: float | None = None
    rows_seen: int | None = None
    epochs: float | None = None
    num_bad_rows: int | None = None


class BestEvaluation(BaseModel):
    """The evaluation whose model is kept in `best/`."""

    step: int
    criterion: str
    loss_nats: float | None = None


class IsolationRecord(BaseModel):
    """isolation.json: how packed examples were kept apart, and what that was found by."""

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
    best: BestEvaluation | None = None
    isolation: IsolationRecord | None = None
    mean_loss_nats: LossCourse = LossCourse()
    worst_loss_nats: LossCourse = LossCourse()
    domains: dict[str, DomainSummary]
