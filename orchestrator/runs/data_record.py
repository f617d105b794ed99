"""Counts and findings of every domain, as `raymix check --json` prints them and a run keeps them in data.json."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.data.report import Report

FILE_NAME = "data.json"

Severity = Literal["error", "warning", "note"]


class Record(BaseModel):
    """Plain data. Not `Settings`: explaining each field by its docstring takes a class 20 ms to be made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(Record):
    """One thing that a person should know before the run."""

    severity: Severity
    """`error` keeps the run from starting; `warning` is likely to hurt; `note` is what was asked for."""
    kind: str
    """For filtering: bad_rows, too_long, excluded, not_chosen, duplicates, shared, same_file, leak, dropped, ..."""
    where: str
    """Key of the configuration that it belongs to, e.g. domains.law; empty where none does."""
    message: str
    """What is so, with the numbers."""

    @property
    def line(self) -> str:
        """The message on its own: with the name of its domain."""
        domain = self.where.removeprefix("domains.")
        return self.message if domain == self.where else f"{domain}: {self.message}"


class StoreCounts(Record):
    """One side of a domain, as it is trained or measured."""

    num_examples: int
    """Examples; a row of a file is one, or several where data.too_long is split."""
    num_distinct: int
    """Those of them that differ in ids or targets."""
    num_prompts: int
    """Prompts that differ, case and spacing folded away."""
    num_rows: int
    """Rows of the token store, which may hold several examples."""
    num_tokens: int
    """Tokens, padding left out."""
    num_targets: int
    """Tokens that are learned."""

    @property
    def num_repeats(self) -> int:
        """Examples that repeat another."""
        return self.num_examples - self.num_distinct


class DomainCounts(Record):
    """What became of a domain's rows."""

    train: StoreCounts | None
    """None for a domain that is only measured."""
    eval: StoreCounts
    """What is held out."""
    train_files: Report
    """Rows of the training files, those included that are set aside for evaluation."""
    eval_files: Report
    """Rows of the evaluation files."""
    num_leaked_prompts: int = 0
    """Held-out prompts that stand in the training data of this or any other domain."""
    leaked_prompts: dict[str, int] = Field(default_factory=dict)
    """The same by the domain in whose training data they stand."""
    num_shared_examples: int = 0
    """Distinct training examples that another domain trains on too."""
    shared_examples: dict[str, int] = Field(default_factory=dict)
    """The same by the other domain."""

    @property
    def report(self) -> Report:
        """All rows that were read."""
        return Report.merged([self.train_files, self.eval_files])


class DataRecord(Record):
    """data.json: what a run's data was when it began."""

    domains: dict[str, DomainCounts]
    findings: list[Finding]
