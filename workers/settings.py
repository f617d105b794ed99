"""The base of every settings class: frozen, no unknown keys, no NaN, every field explained by its docstring."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from workers.storage.addresses import is_uri, place_of, shown, uri_of

Seed = Annotated[int, Field(ge=0, lt=2**64)]
"""The key of everything random: 64 bits, the most that torch accepts."""


def expand_path(value: Any) -> Any:
    """A path with `~` and environment variables expanded; a path that exists literally is left as it is. ValueError if
    it is empty or a URI, or names an unset variable or an unknown user."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("is an empty path; give a path, or leave the key out")
    if is_uri(text):
        raise ValueError(f"{text} is a URI; give a file or folder on a (shared, mounted) file system")
    if not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return value
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111  pathlib raises for an unknown user
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise ValueError(f"{text}: the environment variable {unset[0]} is not set; set it, or write out the path")
    if expanded.startswith("~"):
        raise ValueError(f"{text}: there is no user {expanded.split('/')[0][1:]!r}; write out the path")
    return type(value)(expanded)


def place_or_path(value: Any) -> Any:
    """As `expand_path`, but a URI becomes the place of its copy in this node's cache."""
    if isinstance(value, str) and is_uri(value):
        return str(place_of(value))  # a string, as in a JSON file
    return expand_path(value)


LocalPath = Annotated[Path, BeforeValidator(expand_path)]
"""A file or folder on this machine, as the user writes it in a configuration."""
StoragePath = Annotated[Path, BeforeValidator(place_or_path), PlainSerializer(shown, str, when_used="json")]
"""A file or folder on this machine, or a URI of object storage: in the program the path of its copy on this node, in
JSON, which goes to other nodes and to later runs, the URI."""
StoragePathOrName = Annotated[
    str,
    BeforeValidator(place_or_path),
    Field(min_length=1),
    PlainSerializer(lambda text: uri_of(Path(text)) or text, str, when_used="json"),
]
"""As `StoragePath`, or a name on the hub."""
LocalPathOrName = Annotated[str, BeforeValidator(expand_path), Field(min_length=1)]
"""A folder on this machine, or a name on the hub."""

NewSwitch = Annotated[bool, Field(exclude_if=lambda is_on: not is_on)]
"""A switch that older versions did not have. While it is off it is in no dump, so digests of runs stay as they were."""


def narrow_seed(seed: int) -> int:
    """The seed for libraries that take only 32 bits (scikit-learn, Optuna); smaller seeds are unchanged."""
    return seed % 2**32


class Settings(BaseModel):
    """A group of configuration keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def replaced(self, **changes: Any) -> Self:
        """The same settings with these changes, validated; ValidationError if a key is unknown, or the settings
        contradict each other."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | changes)
