"""What the metrics say of a run, and what deploy/ asks of them. That a server finds them: tests/integration."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from orchestrator.runs.folder import RunFolder
from orchestrator.tracking.prometheus import COUNTERS, GAUGES, counted, newest
from tests.unit.conftest import FakeRun, MakeFakeRun
from workers.contracts import DomainWeights
from workers.events import log_event

DEPLOY = Path(__file__).parents[3] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "raymix.json").read_text())


def read(run: FakeRun) -> RunFolder:
    folder = RunFolder(run.path)
    folder.refresh()
    return folder


def test_gauges_are_the_newest_numbers(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=20, every=10)
    values = newest(read(run))
    assert values.keys() == GAUGES.keys()
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    version = DomainWeights.model_validate_json((run.path / "weights" / "000002.json").read_bytes())
    assert version.effective_step == 21  # the one that holds for the next step
    assert values["raymix_share"] == version.shares and values["raymix_weights_version"] == {"": 2}
    assert values["raymix_loss_nats"] == pytest.approx(run.losses[20])
    assert values["raymix_base_loss_nats"] == pytest.approx(run.losses[0])
    assert values["raymix_epochs"] == lines[-1]["epochs"]
    assert values["raymix_train_loss_nats"] == {"": lines[-1]["loss_nats"]}
    assert values["raymix_algorithm_value"]["temperature"] == 1 / 21


def test_counters_are_totals_of_the_run_and_not_of_the_process(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=20, every=10)
    for kind in ("attempt", "non_finite_loss", "attempt"):
        log_event(run.path, 5, kind, "")
    totals = counted(read(run))
    assert totals.keys() == COUNTERS.keys()
    assert totals["raymix_tokens_total"] == {"": 20 * 8192}
    assert totals["raymix_step_seconds_total"][""] == pytest.approx(20 * 1.6)
    assert totals["raymix_feedback_total"] == {"": 3}
    assert totals["raymix_events_total"] == {"attempt": 2, "non_finite_loss": 1}


def test_a_run_that_has_not_begun_has_no_numbers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert newest(folder)["raymix_share"] == {} and newest(folder)["raymix_step"] == {"": 0}
    assert not any(total for totals in counted(folder).values() for total in totals.values())


def test_the_board_asks_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"ray_(raymix_\w+)", json.dumps(BOARD)))
    assert asked <= GAUGES.keys() | COUNTERS.keys()
    assert {"raymix_share", "raymix_loss_nats", "raymix_epochs", "raymix_events_total"} <= asked


def test_the_board_is_one_that_grafana_imports() -> None:
    panels = BOARD["panels"]
    assert BOARD["uid"] and BOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "run"]
    for panel in panels:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, f"{one} lies over {other}"


def test_provisioning_and_pod_monitor_are_whole() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/raymix.yaml").read_text())["providers"]
    assert provider["type"] == "file" and provider["options"]["path"]
    monitor = yaml.safe_load((DEPLOY / "kuberay/podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"  # as KubeRay names it
