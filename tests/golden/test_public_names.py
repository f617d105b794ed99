"""What users write: keys of the configuration, verbs and options of the command line, files that they look for.

A script or a configuration that worked yesterday works tomorrow. The schema is also what editors complete by.
"""

from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.prepare.importance import FILE
from orchestrator.sweeps.tune.trials import STOPPED_FILE, TRIAL_FILE
from tests.golden.recorded import check_recorded, check_recorded_text

WHY = "Configurations, scripts and editors of users depend on it."


def test_schema_of_the_configuration() -> None:
    """Byte for byte: every key, type, bound, default and explanation."""
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    check_recorded_text("schema.json", result.stdout, WHY)


def test_verbs_and_their_options() -> None:
    check_recorded("public_names", "verbs", _options_of(get_command(app)), WHY)


def test_files_of_a_run() -> None:
    found = {"importance": FILE, "trial": TRIAL_FILE, "trial that ended early": STOPPED_FILE}
    check_recorded("public_names", "files", found, WHY)


def _options_of(command: Any, name: str = "raymix") -> dict[str, list[str]]:
    """Verb -> its arguments in order and its options, those of verbs below a verb as well."""
    if hasattr(command, "commands"):
        parts = [_options_of(part, f"{name} {verb}") for verb, part in command.commands.items()]
        return {verb: options for part in parts for verb, options in part.items()}
    told = ["/".join(each.opts) + ("" if each.required else ", optional") for each in command.params]
    return {name: sorted(told, key=lambda option: option if option.startswith("-") else "")}
