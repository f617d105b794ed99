"""Settings of stages, and of the predefined plans that expand to a list of stages. No torch, no Ray."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.mixing import AnyMixingConfig
from workers.settings import Seed, Settings, StoragePath
from workers.strategies import StrategyConfig

StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]
Amount = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_STARTS = ("base", "previous")


class StartConfig(Settings):
    """Where a run's weights come from, if not from the base model."""

    run: StoragePath
    """Folder of a finished run with the same base model. With the same strategy, the float32 master weights of its last
    checkpoint are used, otherwise its `model/`."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """`fresh` takes weights only; `kept` also takes AdamW's moments."""


class StageSettings(Settings):
    """How a stage trains; keys left out are those of the run."""

    mixing: AnyMixingConfig | None = None
    """Mixing algorithm; `proportional` is plain concatenation."""
    strategy: StrategyConfig | None = None
    """Which parameters are trained. If it differs from that of the stage before, training starts from the exported
    model."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the stage's rows, as in the paper."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps, for comparisons at equal steps."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens, for comparisons at equal tokens; converted to steps by the stage's mean tokens per row."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] | None = None
    """Learning rate schedule; it starts again in every stage."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the stage's steps in which the learning rate rises."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """`fresh` takes only the weights of the stage it starts from; `kept` also takes AdamW's moments."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [key for key in ("epochs", "max_steps", "max_tokens") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not {len(given)}")
        return self


class StageConfig(StageSettings):
    """One stage of a plan: an ordinary run that starts where another ended."""

    name: StageName
    """Name of the stage, and the beginning of its folder's name."""
    seed: Seed | None = None
    """Seed of the stage, which also determines the order of its rows; default: that of the run."""
    start: str = "previous"
    """Where the weights come from: `base`, `previous` (the base for the first stage), or the name of an earlier
    stage."""
    domains: dict[str, Amount] | None = None
    """The domains to train on: a list, or an amount for each: up to 1 a fraction of its training examples, above 1
    their number. Domains that are not named, or have amount 0, are only measured. Default: all of every domain."""

    @field_validator("name")
    @classmethod
    def _not_a_start(cls, value: str) -> str:
        if value in _STARTS:
            raise ValueError(f"{value!r} has a special meaning in `start`; give the stage another name")
        return value

    @field_validator("domains", mode="before", json_schema_input_type=list[str] | dict[str, Amount] | None)
    @classmethod
    def _all_of_each(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            if twice := sorted({name for name in value if value.count(name) > 1}):
                raise ValueError(f"{twice} are given twice; name each domain once")
            return dict.fromkeys(value, 1.0)
        return value

    @field_validator("domains")
    @classmethod
    def _whole_above_one(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name, amount in (value or {}).items():
            if amount > 1 and amount != int(amount):
                raise ValueError(f"{name}: {amount} is neither a fraction (up to 1) nor a whole number of examples")
        if value is not None and not any(value.values()):
            raise ValueError("the stage trains on nothing; give at least one domain an amount above 0")
        return value


class MultiTaskPlan(StageSettings):
    """One stage on all data."""

    plan: Literal["multi_task"] = "multi_task"
    """S(base, all)."""
    domains: Annotated[list[str], Field(min_length=1)] | None = None
    """Domains to train on; default: all."""


class SequentialPlan(StageSettings):
    """One stage per domain, one after the other."""

    plan: Literal["sequential"] = "sequential"
    """S(S(base, first), second) and so on."""
    order: Annotated[list[str], Field(min_length=1)]
    """The domains, in order of training."""


class MixedSequentialPlan(StageSettings):
    """All specialised domains together, then the general ones."""

    plan: Literal["mixed_sequential"] = "mixed_sequential"
    """S(S(base, specialised), general)."""
    specialised: Annotated[list[str], Field(min_length=1)]
    """Domains of the first stage."""
    general: Annotated[list[str], Field(min_length=1)]
    """Domains of the second stage."""


class DmtPlan(StageSettings):
    """Dual-stage mixed fine-tuning: like mixed_sequential, with part of the specialised data in the second stage."""

    plan: Literal["dmt"] = "dmt"
    """S(S(base, specialised), general + sub(specialised, k))."""
    specialised: Annotated[list[str], Field(min_length=1)]
    """Domains of the first stage, replayed in the second."""
    general: Annotated[list[str], Field(min_length=1)]
    """Domains of the second stage."""
    k: Fraction | dict[str, Fraction] = 1 / 256
    """Fraction of each specialised domain to replay in the second stage: one number for all, or one for each."""

    @model_validator(mode="after")
    def _one_k_each(self) -> Self:
        if isinstance(self.k, dict) and set(self.k) != set(self.specialised):
            raise ValueError(f"k names {sorted(self.k)}, but the specialised domains are {sorted(self.specialised)}")
        return self


AnyPlan = Annotated[MultiTaskPlan | SequentialPlan | MixedSequentialPlan | DmtPlan, Field(discriminator="plan")]
