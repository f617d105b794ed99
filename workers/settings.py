"""The base of every settings class: frozen, no unknown keys, no NaN, and each field explained by its docstring."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""What everything random is keyed by: 64 bits, the most that torch takes."""


def narrow_seed(seed: int) -> int:
    """The seed for libraries that take 32 bits, as scikit-learn and Optuna do; smaller seeds stay as they are."""
    return seed % 2**32


class Settings(BaseModel):
    """A group of configuration keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
