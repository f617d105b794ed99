"""The controller as a Ray actor: a name, restarts, and the handle that workers use as their `WeightsSource`.

Ray restarts the process but not its memory: the constructor replays the journal, so a caller notices no more of a
restart than a short delay. Calls may be delivered twice, which the core expects.
"""

from pathlib import Path
from typing import Any

from orchestrator.controller.journal import DurableController
from orchestrator.mixing import ResolvedMixing, build_mixing_algorithm
from orchestrator.mixing.base import Domain
from workers.contracts import DomainFeedback, DomainWeights

NAMESPACE = "raymix"


def start_controller(
    run_folder: Path, run_id: str, mixing: ResolvedMixing, domains: list[Domain]
) -> "RayWeightsSource":
    """Start the controller of a run, or resume it from its journal, and return a handle for the workers.

    It lives as long as the driver: a resumed driver starts it again, and the journal carries the state.
    """
    import ray

    remote_class = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ControllerActor)
    actor: Any = remote_class.options(name=f"controller-{run_id}", namespace=NAMESPACE).remote(
        run_folder, run_id, mixing, domains
    )
    ray.get(actor.history.remote())  # so that an unreadable journal is an error here, not in a worker
    return RayWeightsSource(actor)


class ControllerActor(DurableController):
    """The durable controller, built inside the actor's process."""

    def __init__(self, run_folder: Path, run_id: str, mixing: ResolvedMixing, domains: list[Domain]) -> None:
        super().__init__(run_folder, run_id, build_mixing_algorithm(mixing, domains))


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
        self._ask("stop")

    def is_stopped(self) -> bool:
        return bool(self._ask("is_stopped"))

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote(*arguments))
