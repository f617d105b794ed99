"""What a person is told where Ray itself does not come up."""

import socket
from types import SimpleNamespace
from typing import NoReturn

import pytest
import ray

from orchestrator.cluster.session import ClusterError, explain_loss, ray_session
from orchestrator.config.cluster import ClusterConfig


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("The current node timed out during startup."), "Ray did not start: The current node timed out"),
        (ConnectionError("no head there"), "cluster.address local: no head there"),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_a_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=told), ray_session(ClusterConfig()):
        pytest.fail("there is no session")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(TypeError), ray_session(ClusterConfig()):
        pytest.fail("there is no session")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_head_node_that_is_gone_is_told_with_what_to_do(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        if is_there:
            head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        told = explain_loss(ray.exceptions.ActorUnavailableError("RPC error: Socket closed\nmore", b"a" * 16))
    assert told.endswith("the same command resumes from the last checkpoint") and "\n" not in told
    assert told.startswith("Ray: ActorUnavailableError: " if is_there else f"the cluster's head node ({address}) does")
