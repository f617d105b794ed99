"""Counts and findings of every domain, as `raymix check --json` prints them and a run keeps them in data.json."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.data.report import Report

FILE_NAME = "data.json"

Severity = Literal["error", "warning", "note"]


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
