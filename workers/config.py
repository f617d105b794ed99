"""What the workers are told: domains, data, model, training, evaluation. No torch import: checked in milliseconds."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings import LocalPath, LocalPathOrName, Seed, Settings, expand_path
from workers.strategies import StrategyConfig
from workers.strategies.full import FullConfig

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
        return self.model_copy(update=absolute)

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


class ModelConfig(Settings):
    """The base model."""

    path: LocalPathOrName
    """Local folder or hub name of a causal language model with safetensors weights. Remote code is never run."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the forward and backward pass; the optimizer keeps float32 masters."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers. `auto` takes sdpa where the model's family has it, else eager;
    `flash_attention_2` needs a GPU and a package, so it is never taken without being asked for."""
    chat_template: LocalPath | None = None
    """Jinja file to use instead of the tokenizer's own chat template."""

    def with_absolute_paths(self) -> Self:
        """The same model, named so that a process in another folder finds it; hub names stay as they are."""
        path = Path(self.path).expanduser()
        template = self.chat_template and self.chat_template.resolve()
        return self.model_copy(
            update={"path": str(path.resolve()) if path.exists() else self.path, "chat_template": template}
        )


class DeepSpeedConfig(Settings):
    """The ZeRO engine."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is sharded over the ranks: 1 optimizer state, 2 also gradients, 3 also parameters, 0 nothing."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are summed over passes and ranks where model.dtype is bfloat16. In bfloat16 they
    take half the memory, and a sum loses what is below 1/256 of it."""
    config: LocalPath | None = None
    """A DeepSpeed JSON file of your own; raymix fills in batch sizes, precision, optimizer and what says "auto"."""

    @model_validator(mode="before")
    @classmethod
    def _stage_of_the_file(cls, data: Any) -> Any:
        """Without a `zero_stage` beside it the file's own stage holds; a file that cannot be read is told of later."""
        if isinstance(data, dict) and data.get("config") and "zero_stage" not in data:
            try:
                stage = json.loads(Path(expand_path(data["config"])).read_text(encoding="utf-8"))["zero_optimization"][
                    "stage"
                ]
            except (OSError, ValueError, KeyError, TypeError):
                return data
            if stage in (0, 1, 2, 3):
                return data | {"zero_stage": stage}
        return data


class TrainingConfig(Settings):
    """The optimizer steps."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; give this, `epochs` or `max_tokens`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over as many rows as all domains have together; give this, `max_steps` or `max_tokens`."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens to train on: the nearest number of steps, at the initial mix's mean tokens in a row."""
    global_batch_size: Annotated[int, Field(ge=1)] = 128
    """Rows per optimizer step, over all ranks."""
    batches: Literal["mixed", "one_domain"] = "mixed"
    """What a global batch holds: rows of all domains by their shares, or of one alone, whose turn comes as its share
    says (so in the papers of MultiDDS and Mixture-of-Skills; the released code of the latter mixes)."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 4
    """Rows per rank and forward pass."""
    learning_rate: Annotated[float, Field(gt=0)] = 2.0e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Fraction of the steps in which the learning rate rises from 0 to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only: biases, norms and what states decay by are left alone."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1.0e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the norm of the global gradient to this; 0 clips nothing."""
    router_loss: bool = True
    """Train the auxiliary loss of a mixture-of-experts model too, which keeps its routers balanced, with the
    coefficient of the model's config; all other losses shown remain pure cross-entropy."""
    strategy: StrategyConfig = FullConfig()
    """Which parameters move."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """The ZeRO engine."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints to keep."""

    def with_absolute_paths(self) -> Self:
        """The same, named so that a process in another folder finds its DeepSpeed file."""
        path = self.deepspeed.config
        if path is None:
            return self
        deepspeed = self.deepspeed.model_copy(update={"config": path.expanduser().resolve()})
        return self.model_copy(update={"deepspeed": deepspeed})

    @field_validator("deepspeed", mode="before", json_schema_input_type=Path | DeepSpeedConfig)
    @classmethod
    def _a_file_or_a_mapping(cls, value: Any) -> Any:
        return {"config": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if sum(length is not None for length in (self.max_steps, self.epochs, self.max_tokens)) != 1:
            raise ValueError("give either max_steps or epochs or max_tokens")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self


class EvaluationConfig(Settings):
    """The per-domain evaluation that feeds the mixing algorithm."""

    every: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between two evaluations; the base model is measured at step 0."""
    max_rows: Annotated[int, Field(ge=1)] | Literal["all"] = 64
    """Rows of each domain that are measured: as many held-out examples as fit into them, a random sample of the whole
    held-out set that is the same at every evaluation and in every run on the same data; `all` measures every one."""
    signal_examples: Annotated[int, Field(ge=1)] = 64
    """Training examples of each domain that a signal is measured on, for algorithms that need signals: other ones at
    each evaluation, in whole rows, so that it may be a few more."""
    best: str | None = "mean"
    """What `best/` minimises: `mean` or `worst` domain loss, or that of the domain named here; null keeps no best. The
    model that training starts from counts as well: where no evaluation beats it there is no `best/`. A run's verdict
    goes by the same loss."""
