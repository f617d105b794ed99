"""The graph of folders: no room imports, by any way round, a room that imports it.

A room is a folder of modules. Imports inside functions and under TYPE_CHECKING count like all others: whoever reads a
room has to read what it names, whenever that is imported.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "workers")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def room_of(module: str) -> str:
    return ".".join(FILES[module].parent.relative_to(ROOT).parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of our own modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in whole]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in FILES)


def find_arrows() -> dict[tuple[str, str], list[str]]:
    """(room, room that it imports) -> where."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for module, path in FILES.items():
        for line, other in imported(path):
            if (arrow := (room_of(module), room_of(other)))[0] != arrow[1]:
                arrows.setdefault(arrow, []).append(f"{path.relative_to(ROOT)}:{line}")
    return arrows


def test_imports_between_rooms_go_down_only() -> None:
    arrows = find_arrows()
    graph: dict[str, set[str]] = {}
    for above, below in arrows:
        graph.setdefault(above, set()).add(below)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        steps = zip(circle[1:], circle, strict=False)
        told = "\n".join(f"{above} imports {below}: {', '.join(arrows[above, below][:3])}" for above, below in steps)
        pytest.fail(f"these rooms import one another in a circle:\n{told}")


def test_a_circle_through_a_lazy_import_is_seen() -> None:
    """The test above sees imports inside of functions and those for types alone."""
    found = {where for places in find_arrows().values() for where in places}
    lazy = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES.values()
        for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(outer, ast.FunctionDef)
        for node in ast.walk(outer)
        if isinstance(node, ast.ImportFrom) and node.module in FILES and room_of(node.module) != room_of_path(path)
    ]
    assert lazy and set(lazy) <= found


def room_of_path(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)
