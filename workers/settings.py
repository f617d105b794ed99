"""The base of every settings class: frozen, no unknown keys, no NaN, and each field explained by its docstring."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""What everything random is keyed by: 64 bits, the most that torch takes."""


def expand_path(value: Any) -> Any:
    """A path with `~` and environment variables written out; what there is under the very name stays as it is.

    Raises:
        ValueError: a variable in it is not set, or it names nothing.
    """
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("is an empty path; give one, or leave the key out")
    if not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return value
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111  which leaves an unknown user's name
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise ValueError(f"{text}: the environment variable {unset[0]} is not set; set it, or write the path out")
    if expanded.startswith("~"):
        raise ValueError(f"{text}: there is no user {expanded.split('/')[0][1:]!r}; write the path out")
    return type(value)(expanded)


LocalPath = Annotated[Path, BeforeValidator(expand_path)]
"""A file or folder of this machine, as a person writes it in a configuration."""
LocalPathOrName = Annotated[str, BeforeValidator(expand_path), Field(min_length=1)]
"""A folder of this machine, or a name on the hub."""


def narrow_seed(seed: int) -> int:
    """The seed for libraries that take 32 bits, as scikit-learn and Optuna do; smaller seeds stay as they are."""
    return seed % 2**32


class Settings(BaseModel):
    """A group of configuration keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def replaced(self, **changes: Any) -> Self:
        """The same settings with these changes, which are checked like any others.

        Raises:
            ValidationError: a key is not known, or the settings do not fit together.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | changes)
