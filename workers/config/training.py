"""Settings of the optimizer steps and of the evaluations between them."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings import LocalPath, Settings, expand_path
from workers.strategies import StrategyConfig
from workers.strategies.full import FullConfig
from workers.strategies.lora.config import LoraStrategyConfig


class DeepSpeedConfig(Settings):
    """The ZeRO engine."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is sharded over the ranks: 0 nothing, 1 the optimizer state, 2 also gradients, 3 also parameters."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are summed over passes and ranks if model.dtype is bfloat16. In bfloat16 they take
    half the memory, but a sum loses addends smaller than 1/256 of it."""
    config: LocalPath | None = None
    """Your own DeepSpeed JSON file; raymix fills in batch sizes, precision, optimizer and values of "auto"."""

    @model_validator(mode="before")
    @classmethod
    def _stage_of_the_file(cls, data: Any) -> Any:
        """Without `zero_stage` the file's stage applies; a file that cannot be read is reported later."""
        if isinstance(data, dict) and data.get("config") and "zero_stage" not in data:
            try:
                content = json.loads(Path(expand_path(data["config"])).read_text(encoding="utf-8"))
                stage = content["zero_optimization"]["stage"]
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
    """Passes over as many sequences as all domains have together; give this, `max_steps` or `max_tokens`."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens to train on, rounded to whole steps by the mean tokens in a sequence of the initial mix."""
    global_batch_size: Annotated[int, Field(ge=1)] = 128
    """Sequences per optimizer step, over all ranks."""
    batches: Literal["mixed", "one_domain"] = "mixed"
    """What a global batch holds: sequences of all domains by their shares, or of a single domain, chosen as often as
    its share says (as in the MultiDDS and Mixture-of-Skills papers; the released code of the latter mixes)."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 4
    """Sequences per rank and forward pass."""
    sequence_parallel: Annotated[int, Field(ge=1)] = 1
    """Ranks that share their sequences, each with a slice of the tokens, so that a `data.max_length` beyond the memory
    of one GPU trains (DeepSpeed Ulysses). It must divide the model's attention heads and cluster.num_workers; losses
    and schedule stay, and a run may resume with another number."""
    learning_rate: Annotated[float, Field(gt=0)] = 2.0e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate changes after the warm-up; linear and cosine end at 0."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Fraction of the steps in which the learning rate rises from 0 to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only: not on biases, norms or the decay rates of state-space layers."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1.0e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the norm of the global gradient to this; 0 disables clipping."""
    router_loss: bool = True
    """Also train the auxiliary loss of a mixture-of-experts model, which keeps its routers balanced, with the
    coefficient in the model's config; every other loss shown is pure cross-entropy."""
    strategy: StrategyConfig = FullConfig()
    """Which parameters are trained."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more compute."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """The ZeRO engine."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints to keep."""

    def divides_among(self, num_ranks: int) -> bool:
        """Whether so many ranks can have equal parts of a step: whole micro batches, or all slices of each."""
        num_parts, left_over = divmod(num_ranks, self.sequence_parallel)
        return not left_over and self.global_batch_size % (num_parts * self.micro_batch_size) == 0

    def with_absolute_paths(self) -> Self:
        path = self.deepspeed.config
        if path is None:
            return self
        return self.replaced(deepspeed=self.deepspeed.replaced(config=path.expanduser().resolve()))

    @field_validator("deepspeed", mode="before", json_schema_input_type=Path | DeepSpeedConfig)
    @classmethod
    def _a_file_or_a_mapping(cls, value: Any) -> Any:
        return {"config": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _quantised_weights_stay_whole(self) -> Self:
        if isinstance(self.strategy, LoraStrategyConfig) and self.strategy.use_qlora and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "strategy.use_qlora: not at deepspeed.zero_stage 3, where bitsandbytes would keep all gathered weights "
                "from the forward to the backward pass, so that each rank held the whole model; use stage 0, 1 or 2"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if sum(length is not None for length in (self.max_steps, self.epochs, self.max_tokens)) != 1:
            raise ValueError("give exactly one of max_steps, epochs and max_tokens")
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
    """Sequences of each domain that are measured. They hold a random sample of the whole held-out set, as many examples
    as fit, the same at every evaluation and in every run on the same data; `all` measures every example."""
    signal_examples: Annotated[int, Field(ge=1)] = 64
    """Training examples of each domain on which a signal is measured, for algorithms that need signals: different ones
    at each evaluation, in whole sequences, so possibly a few more."""
    best: str | None = "mean"
    """What `best/` minimises: the `mean` or `worst` domain loss, or the loss of the domain named here; null keeps no
    best model. The model that training starts from counts too: if no evaluation beats it, there is no `best/`. A run's
    verdict uses the same loss."""
