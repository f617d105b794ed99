"""The base of every settings class: frozen, no unknown keys, no NaN, and each field explained by its docstring."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of configuration keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
