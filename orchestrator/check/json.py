"""`raymix check --json`: one JSON value on stdout and nothing else, even if the run is refused."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout

from rich.console import Console

from orchestrator.check.record import RefusedPlan
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.runs.records import Finding
from orchestrator.views.console import redirect_descriptors

_KEY = re.compile(r"(?:.*?:\d+: |[^:]+: )?([A-Za-z_][\w.\[\]-]*): ")
_SET = re.compile(r"--set ([A-Za-z_][\w.\[\]-]*)=")
_DOMAIN = re.compile(r"domain '([^']+)': ")


def print_checked(load: Callable[[], PlanConfig]) -> None:
    """Check the configuration that `load` returns, and print the outcome.

    ValueError, RuntimeError or OSError if the run could not start; its findings are printed first.
    """
    try:
        with redirect_descriptors(2, 1), redirect_stdout(sys.stderr):  # whatever libraries print
            config = load()
            # Slow to import, so only after the faults of the configuration are found.
            from orchestrator.check.driver import checked_plans

            plans = [plan.model_dump(mode="json") for plan in checked_plans(config, Console(stderr=True))]
    except (ValueError, RuntimeError, OSError) as error:
        _print(RefusedPlan(findings=refusals(error)).model_dump(mode="json"))
        raise
    _print(plans if config.stage_list else plans[0])


def refusals(error: Exception) -> list[Finding]:
    """An error as findings, each with the configuration key that its message names."""
    lines = error.lines if isinstance(error, ConfigError) else [str(error)]
    return [Finding(severity="error", kind="refused", where=_where(line), message=line) for line in lines]


def _where(line: str) -> str:
    if found := _DOMAIN.match(line):
        return f"domains.{found.group(1)}"
    found = _SET.match(line) or _KEY.match(line)
    is_key = found is not None and re.split(r"[.\[]", found.group(1))[0] in PlanConfig.model_fields
    return found.group(1) if found and is_key else ""


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
