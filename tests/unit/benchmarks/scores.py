"""What the harness returns, in short, for tests that do not run it."""

from typing import Any

from orchestrator.runs.benchmark_record import add_scores, scores_from
from tests.unit.conftest import FakeRun


def harness_results(**tasks: dict[str, Any]) -> dict[str, Any]:
    """Its results for tasks of ten samples, which are scored by accuracy and loss where the keys do not say more."""
    return {
        "results": {name: {"name": name, "alias": name, "sample_len": 10, **values} for name, values in tasks.items()},
        "group_subtasks": {},
        "higher_is_better": {name: {"acc": True, "exact_match": True, "loss": False} for name in tasks},
        "n-shot": dict.fromkeys(tasks, 5),
        "versions": dict.fromkeys(tasks, 3.0),
    }


def scored(run: FakeRun, base: float, result: float, **terms: Any) -> None:
    """Write a task's scores into the run's folder."""
    before, after = (
        harness_results(**{"gsm|8k": {"acc,none": value, "acc_stderr,none": 0.01}}) for value in (base, result)
    )
    add_scores(run.path, scores_from(before, after, "0.4.13", terms))
