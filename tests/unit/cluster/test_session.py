"""What a person is told where Ray itself does not come up."""

from typing import NoReturn

import pytest
import ray

from orchestrator.cluster.session import ClusterError, ray_session
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
