"""What of runs side by side can be known without a cluster: how many fit, and what the user reads."""

import io
import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from orchestrator.cluster.session import num_side_by_side
from orchestrator.config.cluster import ClusterConfig, WorkerRange
from orchestrator.sweeps import crews
from orchestrator.views.runs import RunsView
from tests.unit.conftest import make_fake_run_in


@pytest.mark.parametrize(
    ("nodes", "clusters", "expected"),
    [
        ([{"CPU": 8.0}], [ClusterConfig()], 8),
        ([{"CPU": 8.0}], [ClusterConfig(num_workers=3)], 2),
        ([{"CPU": 8.0}], [ClusterConfig(), ClusterConfig(num_workers=3)], 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], [ClusterConfig(cpus_per_worker=2)], 2),
        ([{"CPU": 64.0, "GPU": 8.0}], [ClusterConfig(num_workers=2, gpus_per_worker=1)], 4),
        ([{"CPU": 64.0, "GPU": 1.0}], [ClusterConfig(gpus_per_worker=0.5)], 2),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 4.0}], [ClusterConfig(gpus_per_worker=1, cpus_per_worker=2)], 2),
        ([{"CPU": 2.0}], [ClusterConfig(num_workers=3)], 1),
        ([{"CPU": 8.0}], [ClusterConfig(num_workers=WorkerRange(min=2, max=4))], 2),
    ],
)
def test_as_many_run_side_by_side_as_have_room(
    nodes: list[dict[str, float]], clusters: list[ClusterConfig], expected: int
) -> None:
    assert num_side_by_side(nodes, clusters) == expected


@pytest.mark.parametrize(("at_most", "expected"), [(None, 3), (2, 2), (5, 3)])
def test_a_search_may_ask_for_fewer_than_have_room(
    at_most: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "count_fitting", lambda clusters: 3)
    crew = crews.SideBySide(Console(), lambda begun, num_runs: MagicMock(), at_most)
    crew.open([])
    while crew.has_room():
        crew._tasks[MagicMock()] = MagicMock()
    assert crew.num_running == expected


def test_the_view_prints_a_line_for_each_run_that_ends(tmp_path: Path) -> None:
    good = make_fake_run_in(tmp_path)("good", total_steps=40, num_steps=20)
    bad = make_fake_run_in(tmp_path)("bad", total_steps=40, num_steps=0)
    output = io.StringIO()
    with RunsView(lambda: {good.path: 40, bad.path: 40}, 2, Console(file=output, width=60)):
        good.write_steps(21, 40)
        good.write_summary()
        (bad.path / "failure.json").write_text(json.dumps({"message": "step 2: the \x1b[31mloss is not finite"}))
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    mean = sum(good.losses[40].values()) / 5
    assert lines[0] == f"[1/2] good: mean loss {mean:.3f}, 1 min 04 s of training"
    assert lines[1] == "[2/2] bad: failed: step 2: the \\x1b[31mloss is not finite"
