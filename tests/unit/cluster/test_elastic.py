"""When the size of an elastic group changes, what is told of it, and which losses count."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from orchestrator.cluster import elastic
from orchestrator.cluster.elastic import ElasticRun, FailuresWithoutProgress, SizePolicy, count_free
from orchestrator.cluster.session import answers
from tests.runs import read_lines

SIZES = (2, 4, 8)
CPUS = {"CPU": 2.0}


@pytest.fixture
def run(tmp_path: Path) -> ElasticRun:
    return ElasticRun(tmp_path, 100, SIZES)


@pytest.fixture
def policy(run: ElasticRun, monkeypatch: pytest.MonkeyPatch) -> SizePolicy:
    """Of a run on a cluster whose nodes the test makes up."""
    policy = SizePolicy(ScalingConfig(num_workers=(2, 8), resources_per_worker=CPUS), run)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(elastic, "_LOOK_EVERY_SECONDS", 0)
    nodes(policy, monkeypatch, 0)
    return policy


def nodes(policy: SizePolicy, monkeypatch: pytest.MonkeyPatch, *rooms: int, free: int = 0) -> None:
    """Nodes with room for so many workers each, and another one with `free` places that nobody uses."""
    reserved = {f"node{number}": {"CPU": 2.0 * room} for number, room in enumerate(rooms)}
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: reserved)
    monkeypatch.setattr(elastic, "available_resources_per_node", lambda: {"new": {"CPU": 2.0 * free}})


def save(run: ElasticRun, step: int) -> None:
    (run.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def start(policy: SizePolicy) -> int:
    """Start the group that the policy wants; its size, or 0 if it wants none now."""
    decision = policy.make_decision_for_non_running_worker_group()
    if isinstance(decision, NoopDecision):
        return 0
    return begin(policy, decision)


def begin(policy: SizePolicy, decision: Any) -> int:
    assert isinstance(decision, ResizeDecision) and decision.resources_per_worker == CPUS
    policy.before_controller_execute_resize_decision(decision)
    return decision.num_workers


def look(policy: SizePolicy, size: int) -> Any:
    state: Any = SimpleNamespace(num_workers=size)
    return policy.make_decision_for_running_worker_group(state, state)


def told(run: ElasticRun) -> list[tuple[int, str]]:
    return [(event["step"], event["message"]) for event in read_lines(run.folder / "events.jsonl")]


@pytest.mark.parametrize(
    ("rooms", "size"), [([1], 0), ([2], 2), ([1, 2], 2), ([4, 3], 4), ([8], 8), ([100, 100], 8), ([], 0)]
)
def test_a_group_has_the_largest_allowed_size_that_fits(
    policy: SizePolicy, monkeypatch: pytest.MonkeyPatch, rooms: list[int], size: int
) -> None:
    nodes(policy, monkeypatch, *rooms)
    assert start(policy) == size


def test_it_shrinks_with_the_nodes_and_each_size_is_told_once(
    run: ElasticRun, policy: SizePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes(policy, monkeypatch, 4, 4)
    assert [start(policy), start(policy)] == [8, 8]  # the second after a failure that cost no node
    save(run, 20)
    nodes(policy, monkeypatch, 4)
    assert start(policy) == 4
    nodes(policy, monkeypatch, 1)
    assert [start(policy), start(policy)] == [0, 0]
    nodes(policy, monkeypatch, 4, 2)
    assert start(policy) == 4
    waiting = "waiting for room for a group of 2, the smallest allowed"
    assert told(run) == [
        (0, "group of 8"),
        (20, "group of 4: a node was lost"),
        (20, waiting),
        (20, "group of 4"),
    ]


def test_it_grows_only_when_a_checkpoint_has_just_been_written(
    run: ElasticRun, policy: SizePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 20)
    nodes(policy, monkeypatch, 2)
    assert start(policy) == 2
    nodes(policy, monkeypatch, 2, free=3)
    assert isinstance(look(policy, 2), NoopDecision)  # the group began at step 20
    save(run, 40)
    assert begin(policy, look(policy, 2)) == 4
    assert told(run) == [(20, "group of 2"), (40, "group of 4: a node came")]
    assert isinstance(look(policy, 4), NoopDecision)


@pytest.mark.parametrize(("size", "free", "step"), [(2, 1, 40), (8, 8, 40), (4, 0, 40), (2, 8, 100)])
def test_a_group_stays_as_it_is_without_room_at_its_most_and_at_the_last_step(
    run: ElasticRun, policy: SizePolicy, monkeypatch: pytest.MonkeyPatch, size: int, free: int, step: int
) -> None:
    save(run, step)
    nodes(policy, monkeypatch, free=free)
    assert isinstance(look(policy, size), NoopDecision)


def test_a_size_that_could_not_be_started_is_followed_by_the_next_smaller_one(
    policy: SizePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes(policy, monkeypatch, 8)
    sizes = []
    for _ in range(4):
        sizes.append(start(policy))
        policy.after_controller_state_update(RunningState(), ReschedulingState(WorkerGroupError("", {})))
    assert sizes == [8, 4, 2, 2]
    policy.after_controller_state_update(RunningState(), RunningState())
    assert start(policy) == 8


def test_losses_count_until_the_next_checkpoint(run: ElasticRun) -> None:
    policy = FailuresWithoutProgress(FailureConfig(max_failures=2), run)

    def lose() -> FailureDecision:
        return policy.make_decision(WorkerGroupError("", {0: RuntimeError()}))

    again = FailureDecision.RETRY
    assert [lose(), lose()] == [again, again]
    save(run, 20)
    assert [lose(), lose(), lose()] == [again, again, FailureDecision.RAISE]


def test_a_node_whose_raylet_is_gone_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        address = raylet.getsockname()
        assert answers(*address)
    assert not answers(*address)


def test_workers_fit_whole_on_a_node() -> None:
    each = {"CPU": 4.0, "GPU": 0.5, "TPU": 0.0}
    assert count_free([{"CPU": 7.0, "GPU": 8.0}, {"CPU": 9.0, "GPU": 1.0}, {"CPU": 64.0}, {}], each) == 3
    assert count_free([{"CPU": 1.0}], {"CPU": 0.1}) == 10  # 1 // 0.1 is 9
