"""`raymix check --json`: one JSON value on stdout and nothing else, even if the run is refused.

It is a CheckedPlan, or a list of them for a plan of stages; a RefusedPlan if the run could not start.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout

from rich.console import Console

from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.runs.records import DomainCounts, Finding, Record
from orchestrator.views.console import redirect_descriptors

_KEY = re.compile(r"(?:.*?:\d+: |[^:]+: )?([A-Za-z_][\w.\[\]-]*): ")
_SET = re.compile(r"--set ([A-Za-z_][\w.\[\]-]*)=")
_DOMAIN = re.compile(r"domain '([^']+)': ")


class CheckedDomain(DomainCounts):
    """A domain: its counts, and its role in the run."""

    share: float | None
    """Share at the start; null if the domain is only measured, or the shares are still to be detected."""
    epochs: float | None
    """Passes over its training sequences if that share stayed the same."""
    eval_rows_measured: int
    """Sequences of its evaluation store that an evaluation measures."""


class MemoryNeed(Record):
    """Estimated memory of a rank."""

    num_parameters: int
    num_trainable: int
    peak_gib: float
    """Memory at the peak."""
    moment: str
    """When the peak is reached."""
    parts_gib: dict[str, float]
    """What the memory holds at the peak."""
    offloaded_gib: float = 0.0
    """What a DeepSpeed file moves from the GPU to host memory or disk."""


class IsolationPlan(Record):
    """How examples that share a sequence are kept apart."""

    way: str | None = None
    """positions, mask, lengths or separate; null if the run itself finds out."""
    difference_nats: float | None = None
    """The most that packing changes the loss of an example, in nats per token."""
    message: str


class StagePlace(Record):
    """A stage of a plan."""

    number: int
    """Number of the stage, from 1."""
    count: int
    name: str
    starts_from: str | None
    """Name of the stage whose result it starts from; null for the base model."""
    folder: str
    is_finished: bool


class CheckedPlan(Record):
    """The plan of a run."""

    name: str
    stage: StagePlace | None = None
    """Its place, if it is a stage of a plan."""
    steps: int
    global_batch_size: int
    """Sequences in a step, over all ranks."""
    micro_batch_size: int
    """Sequences of a rank in a forward pass."""
    sequence_parallel: int = 1
    """Ranks that share their sequences, each with a slice of the tokens."""
    max_length: int
    """The most tokens in a sequence."""
    tokens: int
    """Approximate number of tokens to train on."""
    algorithm: str
    workers: int
    """Ranks; the most of them, for an elastic group."""
    group_sizes: list[int]
    """The sizes that the worker group can have, smallest first."""
    zero_stage: int
    domains: dict[str, CheckedDomain]
    memory: MemoryNeed
    """Estimated memory of a rank, in the smallest group."""
    training_notes: list[str]
    """Sentences about what is trained: the matrices with an adapter, the router loss."""
    isolation: IsolationPlan | None
    """null if every sequence holds a single example."""
    findings: list[Finding]
    """What the user should know; never errors, because with an error there is no plan."""


class RefusedPlan(Record):
    """What is printed instead if the run could not start; the exit code is then not 0."""

    findings: list[Finding]
    """At least one, all of severity error."""


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
