"""Rules of the house that no single file can keep: who imports whom, what is cheap to import, sizes, forbidden calls.

The examples are part of the house: each is loaded here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from orchestrator.config.load import load_config
from orchestrator.config.run import RunConfig
from orchestrator.mixing import MIXING_ALGORITHMS, MixingConfig

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("orchestrator", "workers") for path in (ROOT / package).rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 300, 60, 90
_HEAVY = {"torch", "ray", "transformers", "deepspeed", "datasets", "peft", "pandas", "sklearn", "scipy", "httpx2"}
_PLOTS = {"plotly", "matplotlib"}
_CONFIGURATION = {"pydantic", "yaml", "numpy", "pyarrow"}
LIGHT = {
    "orchestrator.cli.main": _HEAVY | _PLOTS | _CONFIGURATION,
    "orchestrator.config.run": _HEAVY | _PLOTS | {"pyarrow"},
    "orchestrator.config.load": _HEAVY | _PLOTS,
    "orchestrator.views.weights": _HEAVY | _PLOTS,
    "orchestrator.sweeps.run": _HEAVY,
    "orchestrator.training.driver": _HEAVY | _PLOTS,
    "orchestrator.prepare.token_stores": _HEAVY | _PLOTS,
    "workers.config": _HEAVY | _PLOTS | {"pyarrow"},
    "workers.data.preparing": _HEAVY | _PLOTS,
    "workers.data.tokenization": _HEAVY | _PLOTS,
    "workers.model.base_config": _HEAVY | _PLOTS,
    "workers.model.tokenizer": _HEAVY | _PLOTS,
}
"""Modules that many processes import before they know what they will need, and what none of them may bring along."""

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""
        elif isinstance(node, ast.Call) and dotted_name(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def functions(path: Path) -> Iterator[Function]:
    yield from (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions of the module and methods of its public classes; not those inside functions."""
    for node in tree.body:
        if isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)


def dotted_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def loader_of(call: ast.Call) -> str:
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "Loader")]
    return dotted_name(given[0]) if given else ""


def safe_loaders(path: Path) -> set[str]:
    """yaml.SafeLoader, and the classes of this file that are derived from nothing else."""
    classes = [node for node in parse(path).body if isinstance(node, ast.ClassDef)]
    safe = {node.name for node in classes if [dotted_name(base) for base in node.bases] == ["yaml.SafeLoader"]}
    return safe | {"yaml.SafeLoader"}


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.is_relative_to(ROOT / "workers")], ids=lambda p: p.name
)
def test_workers_know_neither_the_orchestrator_nor_ray(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imported_modules(path)}
    assert not roots & {"orchestrator", "ray"}


@pytest.mark.parametrize("module", LIGHT)
def test_what_every_process_imports_brings_no_heavy_library(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({LIGHT[module]!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def is_of_mixing(node: ast.AST) -> bool:
    """`mixing`, `config.mixing`, `stage.mixing or config.mixing`, and what is called or indexed so."""
    if isinstance(node, ast.BoolOp):
        return any(is_of_mixing(value) for value in node.values)
    return dotted_name(node).rpartition(".")[2].lstrip("_") in ("mixing", "mixing_config")


def questions_about_mixing(tree: ast.Module) -> Iterator[str]:
    """Where code asks mixing settings what only one algorithm's have, or which algorithm's they are."""
    kinds = {algorithm.config_class for algorithm in MIXING_ALGORITHMS.values()}
    fields = {field for kind in kinds for field in kind.model_fields} - set(MixingConfig.model_fields)
    classes = {kind.__name__ for kind in kinds}
    for node in ast.walk(tree):
        asked = ""
        match node:
            case ast.Attribute(value=value, attr=attr) if is_of_mixing(value):
                asked = attr if attr in fields or attr in ("model_copy", "model_fields", "__dict__") else ""
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr" | "vars" | "type" as name), args=[first, *_]
            ):
                asked = name if is_of_mixing(first) else ""
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass" as name), args=[_, wanted]):
                names = {dotted_name(part).rpartition(".")[2] for part in ast.walk(wanted)}
                asked = f"{name} {', '.join(sorted(names & classes))}" if names & classes else ""
            case ast.MatchClass(cls=wanted):
                asked = f"case {wanted.id}" if isinstance(wanted, ast.Name) and wanted.id in classes else ""
        if asked:
            yield f"line {getattr(node, 'lineno', 0)}: {asked}"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if not path.is_relative_to(ROOT / "orchestrator" / "mixing")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_its_own_room_knows_what_is_in_the_settings_of_a_mixing_algorithm(path: Path) -> None:
    """All else asks for needs, names and files (`MixingConfig`), whichever algorithm it is."""
    assert list(questions_about_mixing(parse(path))) == []


@pytest.mark.parametrize(
    "question",
    [
        "config.mixing.reference",
        "(stage.mixing or config.mixing).sigma",
        "self._mixing.target",
        "getattr(config.mixing, 'needs')",
        "hasattr(mixing, key)",
        "mixing.model_copy(update={'reference': losses})",
        "isinstance(settings, (str, versatune.VersaTuneConfig))",
        "type(run.mixing) is VersaTuneConfig",
        "match settings:\n    case FixedConfig(): pass",
    ],
)
def test_a_question_about_one_algorithm_is_found(question: str) -> None:
    assert len(list(questions_about_mixing(ast.parse(question)))) == 1


@every_source
def test_files_and_functions_stay_small(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= (MAX_LOOP_LINES if path == ROOT / "workers" / "loop.py" else MAX_FILE_LINES)
    long = {
        f"{f.name}:{f.lineno}": n
        for f in functions(path)
        if (n := (f.end_lineno or 0) - f.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long, f"functions of more than {MAX_FUNCTION_LINES} lines"


@every_source
def test_nothing_read_from_disk_can_run_code(path: Path) -> None:
    assert not {module.partition(".")[0] for module in imported_modules(path)} & {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
    }
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Call):
            continue
        place = f"{path.name}:{node.lineno}"
        called = dotted_name(node.func)
        assert called not in ("torch.load", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"), place
        if called == "yaml.load":
            assert loader_of(node) in safe_loaders(path), f"{place}: an unsafe loader"
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "trust_remote_code", "weights_only", "shell"):
                safe = keyword.arg == "weights_only"
                assert isinstance(keyword.value, ast.Constant) and keyword.value.value is safe, (
                    f"{place}: {keyword.arg}"
                )


@every_source
def test_modules_say_what_they_are_and_public_functions_what_they_take(path: Path) -> None:
    assert ast.get_docstring(parse(path)), "no module docstring"
    for function in public_functions(parse(path)):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [arg.arg for arg in named if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
        assert not bare, f"{function.name}:{function.lineno}: no annotation"
        assert function.returns is not None, f"{function.name}:{function.lineno}: no return annotation"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_valid_configuration(path: Path) -> None:
    assert isinstance(load_config(path, check_files=False), RunConfig)


def test_the_examples_page_lists_every_example() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES and all(f"]({path.name})" in page for path in EXAMPLES)
