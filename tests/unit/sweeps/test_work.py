"""What one command asks of Ray."""

import io
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from rich.console import Console

from orchestrator.config.cluster import ClusterConfig
from orchestrator.sweeps.work import Work


@pytest.mark.parametrize(
    ("groups", "frees_lost_workers", "with_dashboard"),
    [([1, 1], True, False), ([1, 2], True, True), ([2, 1], True, True), ([2], False, False)],
)
def test_the_dashboard_is_for_worker_groups_that_may_be_lost(
    monkeypatch: pytest.MonkeyPatch, groups: list[int], frees_lost_workers: bool, with_dashboard: bool
) -> None:
    asked: list[bool] = []

    def session(cluster: ClusterConfig, include_dashboard: bool) -> Any:
        asked.append(include_dashboard)
        return nullcontext()

    monkeypatch.setattr("orchestrator.sweeps.work.ray_session", session)
    with ExitStack() as held:
        work = Work(Console(file=io.StringIO()), held, frees_lost_workers=frees_lost_workers)
        # Most CPUs does not mean most workers: the first has as many as the others together.
        clusters = [ClusterConfig(num_workers=number, cpus_per_worker=8 if number == 1 else 1) for number in groups]
        work.start_ray(clusters)
        work.start_ray(clusters)
    assert asked == [with_dashboard]
