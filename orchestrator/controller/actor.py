"""The controller as a Ray actor: a name, restarts, and the handle that workers use as their `WeightsSource`.

Ray restarts the process but not its memory: the constructor replays the journal, so a caller notices no more of a
restart than a short delay. Calls may be delivered twice, which the core expects. The actor also hears from the ranks
how far they are, so that the driver can ask whether one hangs; none of that is kept.
"""

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.controller.journal import DurableController
from orchestrator.controller.watch import Hang, RankWatch
from orchestrator.mixing import ResolvedMixing, build_mixing_algorithm
from orchestrator.mixing.base import Domain
from workers.contracts import DomainFeedback, DomainWeights
from workers.events import log_event
from workers.training.progress import Progress

NAMESPACE = "raymix"
_ALIVE_SECONDS = 1.0  # within which the loss of a dead process is known
_WATCHING = "watching"
"""A thread of its own for reports and for the wish to stop: they must not wait while a version is being written to a
storage that does not answer."""


def start_controller(
    run_folder: Path, run_id: str, mixing: ResolvedMixing, domains: list[Domain], where: Mapping[str, Any] | None = None
) -> "RayWeightsSource":
    """Start the controller of a run, or resume it from its journal, and return a handle for the workers.

    `where` are Ray's options for the node on which it runs, which may be any.

    It lives as long as the driver: a resumed driver starts it again, and the journal carries the state.
    """
    import ray

    settings: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "concurrency_groups": {_WATCHING: 1},
    }
    remote_class: Any = ray.remote(**settings)(ControllerActor)
    actor: Any = remote_class.options(name=f"controller-{run_id}", namespace=NAMESPACE, **(where or {})).remote(
        run_folder, run_id, mixing, domains
    )
    ray.get(actor.history.remote())  # so that an unreadable journal is an error here, not in a worker
    return RayWeightsSource(actor)


class ControllerActor(DurableController):
    """The durable controller, built inside the actor's process."""

    def __init__(self, run_folder: Path, run_id: str, mixing: ResolvedMixing, domains: list[Domain]) -> None:
        super().__init__(run_folder, run_id, build_mixing_algorithm(mixing, domains))
        self._ranks = RankWatch()
        self._driver, self._driver_until = "", math.inf  # when a driver that has not asked again counts as stopped

    def hear(self, progress: Progress, rank: Any) -> None:
        """A rank's report, and the handle of its process."""
        now = time.monotonic()
        self._ranks.hear(progress, rank, now)
        if slow := self._ranks.find_slow():
            log_event(self.folder, progress.step, "slow_rank", slow)
        if now > self._driver_until:
            self._driver_until = math.inf
            message = "does not run (it was stopped, or its machine is overloaded); the training goes on without it"
            log_event(self.folder, progress.step, "hang", f"the driver {self._driver} {message}")

    def find_hang(self, bound_s: float, driver: str) -> Hang | None:
        """The rank that hangs, if one does; the driver asks several times within the bound, and says where it is."""
        now = time.monotonic()
        self._driver, self._driver_until = driver, now + bound_s
        return self._ranks.find_hang(bound_s, now)

    def forget(self, progress: Progress) -> None:
        """The process that reported this is gone, or trains no more."""
        self._ranks.forget(progress)

    def ranks(self) -> list[Any]:
        """Handles of the ranks' processes, those that died unnoticed among them."""
        return self._ranks.actors()


class RayWeightsSource:
    """A `WeightsSource` that asks the controller's actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def open_attempt(self) -> int:
        return int(self._ask("open_attempt"))

    def history(self) -> list[DomainWeights]:
        return list(self._ask("history"))

    def pull(self, step: int) -> DomainWeights | None:
        weights = self._ask("pull", step)
        return None if weights is None else DomainWeights.model_validate(weights)

    def push(self, feedback: DomainFeedback) -> DomainWeights:
        return DomainWeights.model_validate(self._ask("push", feedback))

    def stop(self) -> None:
        """Ask the training to end before the next step."""
        self._ask("stop", group=_WATCHING)

    def is_stopped(self) -> bool:
        return bool(self._ask("is_stopped"))

    def report(self, progress: Progress) -> None:
        """Send this rank's progress, and wait until it has arrived."""
        import ray

        self._ask("hear", progress, ray.get_runtime_context().current_actor, group=_WATCHING)

    def find_hang(self, bound_s: float) -> Hang | None:
        """The rank that hangs, if one does; ray's GetTimeoutError if the controller does not answer within the bound.

        For the driver: once it has asked, the controller notes when it no longer does.
        """
        import ray

        asking = f"on {socket.gethostname()} (pid {os.getpid()})"
        find_hang = self._actor.find_hang.options(concurrency_group=_WATCHING)
        hang: Hang | None = ray.get(find_hang.remote(bound_s, asking), timeout=bound_s)
        return hang

    def forget(self, progress: Progress) -> None:
        """Expect no more reports of the process that reported this. Does not wait."""
        self._actor.forget.options(concurrency_group=_WATCHING).remote(progress)

    def has_ranks(self) -> bool:
        """Whether any rank is there: none is while a worker group waits for room, or is being started."""
        import ray

        for actor in self._ask("ranks", group=_WATCHING):
            try:
                ray.get(actor.__ray_ready__.remote(), timeout=_ALIVE_SECONDS)
            except ray.exceptions.RayActorError:
                continue
            except ray.exceptions.GetTimeoutError:  # it is busy
                pass
            return True
        return False

    def restart(self) -> None:
        """Kill the controller's process; Ray starts it again, and it takes up its journal."""
        import ray

        ray.kill(self._actor, no_restart=False)

    def _ask(self, method: str, *arguments: Any, group: str | None = None) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).options(concurrency_group=group).remote(*arguments))
