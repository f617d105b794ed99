"""Which of Ray Train's helpers are started beside a worker group."""

import pytest
from ray.train import ScalingConfig

from orchestrator.cluster import worker_group
from orchestrator.cluster.worker_group import LeanTrainer

CLEANER, DATASETS = "PlacementGroupCleanerCallback", "DatasetsCallback"


@pytest.mark.parametrize(("dashboard", "left_out"), [("", {CLEANER, DATASETS}), ("127.0.0.1:8265", {DATASETS})])
def test_what_has_nothing_to_do_is_not_started(
    monkeypatch: pytest.MonkeyPatch, dashboard: str, left_out: set[str]
) -> None:
    monkeypatch.setattr(worker_group, "get_dashboard_url", lambda: dashboard)
    trainer = LeanTrainer(print, scaling_config=ScalingConfig(num_workers=2))
    started = {type(each).__name__ for each in trainer._create_default_callbacks()}
    usual = {type(each).__name__ for each in super(LeanTrainer, trainer)._create_default_callbacks()}
    assert usual - started == left_out and "BackendSetupCallback" in started
