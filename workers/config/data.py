"""Domains and how their rows become token stores."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings import LocalPath, LocalPathOrName, Seed, Settings

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]


TrainOn = Literal["all", "last"]


class HubConfig(Settings):
    """A data set of the Hugging Face hub, read through `datasets`."""

    path: LocalPathOrName
    """Name on the hub (owner/name), or a local data set folder."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to evaluate on; without it `eval_fraction` is set aside."""
    revision: str | None = None
    """Branch, tag or commit; pin a commit to make the run repeatable."""


class Exclusion(Settings):
    """Training rows to leave out: those in which a pattern is found."""

    pattern: Annotated[str, Field(min_length=1)]
    """Regular expression (Python's), searched for without regard to case."""
    field: str | None = None
    """Field of the file to search, e.g. one of tags: text, a number, true or false, or a list of them; default: all
    texts of the example, thoughts and tool calls included."""
    eval: bool = False
    """Leave such rows out of the evaluation files or split as well."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value


class DomainConfig(Settings):
    """Where the rows of one domain come from: `train` files or a `hub` data set, and how to read them.

    A domain with `eval` files alone, or with `fraction: 0`, is measured and not trained on.
    """

    train: list[LocalPath] = Field(default_factory=list)
    """Training files: .jsonl, .ndjson, .json, .csv or .tsv (all also .gz or .zst), .parquet, .arrow or .feather;
    folders of such files, or that `save_to_disk` wrote; patterns with `*`, `?`, `[ab]` and `**`."""
    eval: list[LocalPath] = Field(default_factory=list)
    """Evaluation files, named in the same ways; without them `eval_fraction` of the training rows is set aside."""
    hub: HubConfig | None = None
    """A Hugging Face data set instead of files."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Fraction of the prompts set aside for evaluation where there is no evaluation file or split."""
    format: Format = "auto"
    """Layout of a row; `auto` looks at the first rows, and refuses what must not be guessed, as preference data."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Field names of the format -> field names of the file, e.g. {prompt: question, completion: answer}."""
    train_on: TrainOn | None = None
    """Which answers of a conversation are learned, in place of data.train_on."""
    text_has_template: bool = False
    """For format text: the texts carry their chat template already, so their control tokens are read as such. Without
    it a text with control tokens is refused."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of the training examples to use: the first of one order keyed by data.sample_seed and the domain's name,
    so that a smaller fraction is part of a larger one; at least one example, and none at 0."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Number of training examples to use, the first of the same order; in place of `fraction`."""
    exclude: list[Exclusion] = Field(default_factory=list)
    """Training rows to leave out, before any are chosen or set aside; counted."""

    @field_validator("train", "eval", mode="before", json_schema_input_type=Path | list[Path])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    def with_absolute_paths(self) -> Self:
        """The same domain, named so that a process in another folder finds its files."""
        # Links are left as they are: what a link points to may have a name that does not tell its kind.
        absolute = {part: [path.expanduser().absolute() for path in getattr(self, part)] for part in ("train", "eval")}
        return self.replaced(**absolute)

    @property
    def is_trained(self) -> bool:
        """Whether it is trained on, and not only measured."""
        return bool(self.train or self.hub) and self.fraction > 0 and self.count != 0

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.count is not None and self.fraction != 1.0:
            raise ValueError(f"give `fraction` ({self.fraction}) or `count` ({self.count}), not both")
        return self

    @model_validator(mode="after")
    def _keys_of_their_format(self) -> Self:
        if self.text_has_template and self.format not in ("auto", "text"):
            raise ValueError(f"text_has_template is for rows of format text, not {self.format}; take it out")
        if self.train_on is not None and self.format == "text":
            raise ValueError("train_on is for conversations; a document (format text) is learned whole; take it out")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.train and self.hub is not None:
            raise ValueError("give either `train` (files) or `hub` (a Hugging Face data set), not both")
        if not (self.train or self.hub or self.eval):
            raise ValueError("give `train` (files) or `hub` (a Hugging Face data set); `eval` alone to measure only")
        if self.eval and self.hub is not None:
            raise ValueError("`eval` names files, but the domain comes from the hub; use hub.eval_split")
        return self


class DataConfig(Settings):
    """How rows become token stores."""

    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens in a row of a token store."""
    packing: bool = True
    """Put several whole examples into one row; no example sees another, so no loss changes."""
    too_long: Literal["drop", "truncate", "split"] = "drop"
    """What happens to an example of more than max_length tokens; the cases are counted."""
    train_on: TrainOn = "all"
    """Which answers of a conversation are learned: all, or its last message by the assistant; never one of weight 0."""
    bad_rows: Literal["skip", "fail"] = "skip"
    """`skip` counts unreadable rows and goes on; `fail` stops at the first."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """With `skip`: the largest fraction of unreadable rows in a domain before the run refuses to start."""
    zstd_window_mib: Annotated[int, Field(ge=1, le=2048)] = 128
    """Longest window that a .zst file may need, in MiB: `zstd --long=31` makes 2048. A task that reads such a file
    takes that much memory."""
    cache_dir: LocalPath | None = None
    """Folder of the token stores, shared by all runs; default: `token-stores` in output_dir."""
    sample_seed: Seed = 0
    """Seed of the order that `fraction` and `count` of a domain take the first of; runs of other seeds share stores."""
    log_samples: bool = False
    """Write samples.jsonl: the row ids that every rank trained on, step by step."""
