"""Settings of CoFiTune, and the layers that a range selects. No torch: checked when a configuration is read."""

from fractions import Fraction
from math import ceil, floor
from typing import Annotated, Literal

from pydantic import Field, field_validator

from workers.settings import Settings, StoragePath
from workers.strategy import StrategySettings

Module = Literal["q", "k", "v", "o", "gate", "up", "down"]
ModuleSet = Literal["attention", "feed_forward"]

MODULE_SETS: dict[str, tuple[Module, ...]] = {"attention": ("q", "k", "v"), "feed_forward": ("up", "down")}
"""The sets that the paper compares: attention without the output projection, feed-forward without the gate."""


class ImportanceConfig(Settings):
    """How important the base model's heads and neurons are: measured on the trained domains' rows, or read from files.

    `zscore` is the paper's normalisation, and the default so that runs are comparable with it; it makes sense only for
    the paper's signed scores, which scatter around 0. `rank` does not depend on how the scores are distributed.
    """

    files: list[StoragePath] = Field(default_factory=list)
    """importance.safetensors of other runs, used instead of measuring; of several, the elementwise maximum."""
    domains: Annotated[list[str], Field(min_length=1)] | None = None
    """Trained domains whose training sequences are measured; default: all of them."""
    num_rows: Annotated[int, Field(ge=1)] = 128
    """Sequences of each domain, drawn with the run's seed. The paper measures all of them."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.003
    """Dropout on attention probabilities and feed-forward outputs while measuring, as a fraction."""
    normalisation: Literal["zscore", "rank"] = "zscore"
    """`zscore`: |tanh z| of the signed score in its layer (the paper's code); `rank`: rank of the absolute score."""
    merge: Literal["pool", "max"] = "pool"
    """`pool` measures all domains as one set of tokens; `max` each separately, then takes the elementwise maximum."""


class CoFiTuneConfig(StrategySettings):
    """Train some modules of some layers and protect their important units with a soft mask."""

    type: Literal["cofitune"] = "cofitune"
    """CoFiTune: a range of layers, a set of modules, a soft mask."""
    layers: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (0.25, 0.5)
    """Range (from, to] of the trained layers, in fractions of the depth; [0.25, 0.5] of 32 layers is 9 to 16."""
    modules: Annotated[list[Literal[Module, ModuleSet]], Field(min_length=1)] = Field(default=["feed_forward"])
    """What is trained in these layers: `attention` (q, k, v), `feed_forward` (up, down), or single modules."""
    mask: Literal["update", "gradient", "none"] = "update"
    """What the soft mask scales: the `update`, the `gradient` (as in the paper; hardly acts under Adam), or `none`."""
    importance: ImportanceConfig = ImportanceConfig()
    """Where the mask comes from."""

    @property
    def trained_modules(self) -> list[Module]:
        single = [module for name in self.modules for module in MODULE_SETS.get(name, (name,))]
        return list(dict.fromkeys(single))  # type: ignore[arg-type]  # any other name is a module

    @field_validator("layers")
    @classmethod
    def _a_range(cls, layers: tuple[float, float]) -> tuple[float, float]:
        if layers[0] >= layers[1]:
            raise ValueError(f"{list(layers)} is empty; give [from, to] with from < to, e.g. [0.25, 0.5]")
        return layers


def trained_layers(layers: tuple[float, float], num_layers: int) -> range:
    """Indices, from 0, of the layers in the half-open range (from, to] of the depth, with layers counted from 1.

    Source: arXiv 2404.10306, the author's script: (0.25, 0.5] of 32 layers is 8..15, of 60 layers 15..29.

    Raises:
        ValueError: the range contains no layer.
    """
    # Exact decimals as written: 0.29 * 100 is 28.999999999999996 in floating point.
    first, last = (floor(Fraction(str(end)) * num_layers) for end in layers)
    if first == last:
        near = [ceil(1000 * layer / num_layers) / 1000 for layer in (first, first + 1)]
        raise ValueError(
            f"training.strategy.layers: {list(layers)} of {num_layers} layers contains no layer; "
            f"{near} would be layer {first + 1}, for example"
        )
    return range(first, last)
