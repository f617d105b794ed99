"""The command line itself: help on every verb, versions, shell completion."""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pytest
import typer.main
from typer.testing import CliRunner

from orchestrator.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group


def invoke(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(app, list(arguments), prog_name="raymix", env=environment)
    assert done.exit_code == 0, done.output
    return done.output


def command_lines() -> Iterator[list[str]]:
    yield []
    for name, command in COMMANDS.items():
        yield [name]
        yield from ([name, str(Path(__file__).parent), sub] for sub in getattr(command, "commands", ()))


@pytest.mark.parametrize("line", command_lines(), ids=lambda line: " ".join(["raymix", *line[::2]]))
def test_h_is_help_on_every_verb(line: list[str]) -> None:
    shown = invoke(*line, "-h")
    assert shown == invoke(*line, "--help")
    assert "Usage: raymix" in shown and (not line or line[-1] in shown)


def test_every_verb_says_what_it_does() -> None:
    shown = " ".join(invoke("--help", COLUMNS="300").split())
    for name, command in COMMANDS.items():
        assert f" {name} {' '.join(command.get_short_help_str(300).split())}" in shown


def test_the_version_and_those_of_the_libraries() -> None:
    own, others = invoke("--version").splitlines()
    assert own == f"raymix {version('raymix')}"
    libraries = ("torch", "ray", "deepspeed", "transformers")
    assert others.split(", ") == [f"Python {python_version()}", *(f"{name} {version(name)}" for name in libraries)]


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["orchestrator.cli.main"], "_PACKAGES", ("no-such-package",))
    assert invoke("--version").splitlines()[1].endswith(", no-such-package not installed")


@pytest.mark.parametrize(("words", "completed"), [("we", "weights"), ("coarse", "coarse-search"), ("run --s", "--set")])
def test_a_shell_completes_verbs_and_options(words: str, completed: str) -> None:
    typed = f"raymix {words}"
    position = str(len(typed.split()) - 1)
    environment = {"_RAYMIX_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": position}
    assert invoke(**environment).split() == [completed]


def test_completion_is_shown_and_installed_for_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = invoke("--show-completion")
    assert "_RAYMIX_COMPLETE=complete_bash" in shown and "complete " in shown
    assert "bash completion installed" in invoke("--install-completion")
    (script,) = tmp_path.glob(".bash_completions/*")
    assert script.read_text().strip() == shown.strip()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_ctrl_c_ends_the_log_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cluster.jobs.client.follow", interrupted)
    assert invoke("logs", "tuned", "-f") == "tuned keeps running; to stop it: raymix stop tuned\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["set", "law=2", "--by", "ann"], "raymix: law: is 2; a share is a number from 0 to 1"),
        (["set", "law=much", "--by", "ann"], "raymix: law: is much; a share is a number from 0 to 1"),
        (["pause", "--by", ""], "raymix: --by: string should have at least 1 character"),
        (["set", "law", "--by", "ann"], "raymix: set needs a share for each domain that it names, e.g. law=0.4"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_a_line(tmp_path: Path, words: list[str], line: str) -> None:
    done = CliRunner().invoke(app, ["weights", str(tmp_path), *words])
    assert done.exit_code == 1 and done.stderr.startswith(line), done.stderr
