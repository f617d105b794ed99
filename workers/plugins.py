"""Table entries from installed distributions, through Python's entry points: only installed code runs.

A distribution names them in its pyproject.toml, `[project.entry-points."raymix.mixing"]`. An unusable one is left out
of its table, so that a finished run can still be inspected; reading a configuration shows `plugin_faults`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel

Entry = TypeVar("Entry")

_faults: dict[EntryPoint, str] = {}


def with_plugins(group: str, own: Mapping[str, Entry], fault_of: Callable[[str, Any], str | None]) -> dict[str, Entry]:
    """The table `own`, followed by the entries of installed plugins in an entry point group such as raymix.mixing.

    `fault_of` says why an object cannot be the entry of a name; None if it can.
    """
    table = dict(own)
    for point in entry_points(group=group):
        if fault := _add(table, point, fault_of):
            _faults[point] = fault
    return table


def _add(table: dict[str, Any], point: EntryPoint, fault_of: Callable[[str, Any], str | None]) -> str | None:
    if point.name in table:
        return f"the name {point.name!r} is taken"
    try:
        entry = point.load()
    except Exception as error:  # third-party code may raise anything
        return f"{point.value} cannot be imported: {type(error).__name__}: {error}"
    if fault := fault_of(point.name, entry):
        return f"{point.value} {fault}"
    table[point.name] = entry
    return None


def names_of_table(table: str, names: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that also offers the names of its module `table`, imported at their first use.

    Not sooner: a table imports plugins, whose modules import the package.
    """

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {table.rpartition('.')[0]!r} has no attribute {name!r}")
        return getattr(importlib.import_module(table), name)

    return attribute


def class_fault(kind: type, settings: type[BaseModel]) -> Callable[[str, Any], str | None]:
    """For tables of classes derived from `kind`, each with settings as its `config_class`."""

    def fault_of(name: str, entry: Any) -> str | None:
        if not (isinstance(entry, type) and issubclass(entry, kind)):
            return f"is not a {kind.__name__}"
        if not has_type(getattr(entry, "config_class", None), settings, name):
            return f"has no config class as its type parameter whose type is Literal[{name!r}]"
        return None

    return fault_of


def type_parameter(cls: type, bound: type[Entry]) -> type[Entry] | None:
    """The class derived from `bound` that a generic class is given as its type parameter; None without one."""
    arguments = [argument for base in getattr(cls, "__orig_bases__", ()) for argument in get_args(base)]
    return next((each for each in arguments if isinstance(each, type) and issubclass(each, bound)), None)


def has_type(config: Any, base: type[BaseModel], name: str) -> bool:
    """Whether `config` is a subclass of `base` that a configuration selects with `type: name`."""
    if not (isinstance(config, type) and issubclass(config, base)):
        return False
    return config.model_fields["type"].annotation == Literal[name]


def plugin_faults() -> list[str]:
    """A line for each unusable plugin."""
    return [
        f"plugin {point.name!r} of {_distribution(point)}, group {point.group}: {fault}; fix or uninstall it"
        for point, fault in _faults.items()
    ]


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
