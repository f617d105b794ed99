"""Domains and how their rows become token stores."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings import LocalPathOrName, NewSwitch, Seed, Settings, StoragePath

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]
TrainOn = Literal["all", "last"]


class HubConfig(Settings):
    """A data set on the Hugging Face hub, read through `datasets`."""

    path: LocalPathOrName
    """Name on the hub (owner/name), or a local data set folder."""
    name: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to evaluate on; without one, `eval_fraction` of the training rows is set aside."""
    revision: str | None = None
    """Branch, tag or commit; pin a commit to make the run repeatable."""


class Exclusion(Settings):
    """Training rows to leave out: those that match a pattern."""

    pattern: Annotated[str, Field(min_length=1)]
    """Python regular expression; matched anywhere in the text, ignoring case."""
    field: str | None = None
    """Field of the file to search, e.g. one with tags: text, a number, true or false, or a list of these; default: all
    text of the example, including thoughts and tool calls."""
    eval: bool = False
    """Also leave such rows out of the evaluation files or split."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value


class DomainConfig(Settings):
    """Where the rows of one domain come from (`train` files or a `hub` data set) and how to read them.

    A domain with only `eval` files, or with `fraction: 0`, is measured but not trained on.
    """

    train: list[StoragePath] = Field(default_factory=list)
    """Training files: .jsonl, .ndjson, .json, .csv or .tsv (each also as .gz or .zst), .parquet, .arrow or .feather;
    folders of such files; folders written by `save_to_disk`; patterns with `*`, `?`, `[ab]` and `**`. Each may be a URI
    of object storage."""
    eval: list[StoragePath] = Field(default_factory=list)
    """Evaluation files, given in the same way; without any, `eval_fraction` of the training rows is set aside."""
    hub: HubConfig | None = None
    """A Hugging Face data set instead of files."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Fraction of the prompts set aside for evaluation if there is no evaluation file or split."""
    format: Format = "auto"
    """Layout of a row; `auto` detects it from the first rows and refuses to guess e.g. at preference data."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Field names of the format -> field names of the file, e.g. {prompt: question, completion: answer}."""
    train_on: TrainOn | None = None
    """Which answers of a conversation are trained on; overrides data.train_on."""
    text_has_template: bool = False
    """For format text: the texts already include their chat template, so control tokens in them are read as such.
    Otherwise a text with control tokens is refused."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of the training examples to use, taken from the start of one random order keyed by data.sample_seed and
    the domain's name, so that a smaller fraction is a subset of a larger one; at least one example, or none at 0."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Number of training examples to use, taken from the start of the same order; instead of `fraction`."""
    exclude: list[Exclusion] = Field(default_factory=list)
    """Training rows to leave out before any are chosen or set aside; they are counted."""
    streaming: NewSwitch = False
    """Prepare the training rows part by part while training goes on, so that the first step does not wait for the last
    row. For data too large to store or to wait for; what needs the number of all rows is refused."""

    @field_validator("train", "eval", mode="before", json_schema_input_type=Path | list[Path])
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    def with_absolute_paths(self) -> Self:
        # Links stay links: the name of a link's target may not show its file type.
        absolute = {part: [path.expanduser().absolute() for path in getattr(self, part)] for part in ("train", "eval")}
        return self.replaced(**absolute)

    @property
    def is_trained(self) -> bool:
        return bool(self.train or self.hub) and self.fraction > 0 and self.count != 0

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.count is not None and self.fraction != 1.0:
            raise ValueError(f"give `fraction` ({self.fraction}) or `count` ({self.count}), not both")
        return self

    @model_validator(mode="after")
    def _streams_are_used_whole(self) -> Self:
        if self.streaming and not (self.train or self.hub):
            raise ValueError("streaming is for training data, and the domain has none; remove it")
        if self.streaming and self.is_trained and (self.count is not None or self.fraction != 1.0):
            key = "fraction" if self.count is None else "count"
            raise ValueError(
                f"`{key}` ({getattr(self, key):g}) is taken from an order of all examples, and with streaming their "
                "number is unknown; remove it (training.max_steps and the shares bound what is used), or streaming"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_their_format(self) -> Self:
        if self.text_has_template and self.format not in ("auto", "text"):
            raise ValueError(f"text_has_template is for rows of format text, not {self.format}; remove it")
        if self.train_on is not None and self.format == "text":
            raise ValueError("train_on is for conversations; a document (format text) is trained on whole; remove it")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.train and self.hub is not None:
            raise ValueError("give either `train` (files) or `hub` (a Hugging Face data set), not both")
        if not (self.train or self.hub or self.eval):
            raise ValueError("give `train` (files) or `hub` (a Hugging Face data set), or `eval` alone to measure only")
        if self.eval and self.hub is not None:
            raise ValueError("`eval` names files, but the domain comes from the hub; use hub.eval_split")
        return self


class DataConfig(Settings):
    """How rows become token stores: packed sequences of tokens."""

    max_length: Annotated[int, Field(ge=8)] = 2048
    """Most tokens in a sequence, and so in an example."""
    packing: bool = True
    """Pack several whole examples into one sequence; no example sees another, so no loss changes."""
    too_long: Literal["drop", "truncate", "split"] = "drop"
    """What to do with an example longer than max_length tokens; such examples are counted."""
    train_on: TrainOn = "all"
    """Which answers of a conversation are trained on: all, or the assistant's last message; never one of weight 0."""
    bad_rows: Literal["skip", "fail"] = "skip"
    """`skip` counts unreadable rows and continues; `fail` stops at the first one."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """With `skip`: the largest fraction of unreadable rows in a domain with which a run still starts."""
    zstd_window_mib: Annotated[int, Field(ge=1, le=2048)] = 128
    """Longest window that a .zst file may need, in MiB (`zstd --long=31` uses 2048). A task that reads such a file
    needs that much memory."""
    cache_dir: StoragePath | None = None
    """Folder or URI of the token stores, shared between runs; default: `token-stores` in output_dir."""
    sample_seed: Seed = 0
    """Seed of the order from which a domain's `fraction` or `count` is taken; runs of any `seed` share stores."""
    log_samples: bool = False
    """Write samples.jsonl: the ids of the sequences that every rank trained on at each step."""
