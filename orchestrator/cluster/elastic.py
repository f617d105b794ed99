"""Worker groups whose size follows the cluster: fewer workers when a node is lost, more when one comes.

A lost node takes its workers with it; Ray Train then starts a group of those that still fit, which resumes from the
last checkpoint. While a group trains it only grows, and only when a checkpoint has just been written: nothing is
trained twice but the few steps between the checkpoint and the end of the group.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, TrainControllerState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from orchestrator.cluster.session import answers
from orchestrator.cluster.worker_group import LeanTrainer
from workers.engine.checkpoint import list_checkpoints
from workers.events import log_event

_LOOK_EVERY_SECONDS = 1.0  # for room, while a group waits for it


@dataclass(frozen=True)
class ElasticRun:
    """What decides about the size of a run's worker group."""

    folder: Path
    num_steps: int
    sizes: Sequence[int]
    """The sizes that the group can have, smallest first."""

    def last_saved(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        saved = list_checkpoints(self.folder / "checkpoints")
        return int(saved[-1].name.removeprefix("step-")) if saved else 0

    def largest(self, num_workers: int) -> int:
        """The largest of the sizes for which there is room; 0 if there is room for none."""
        return max((size for size in self.sizes if size <= num_workers), default=0)


class ElasticTrainer(LeanTrainer):
    """Ray Train's trainer of a group whose size may change."""

    def __init__(self, *arguments: Any, run: ElasticRun, **settings: Any) -> None:
        self._run = run
        super().__init__(*arguments, **settings)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        scaling, failures = self.scaling_config, self.run_config.failure_config
        settings["scaling_policy"] = SizePolicy(scaling, self._run)  # type: ignore[arg-type]  # v2's
        settings["failure_policy"] = FailuresWithoutProgress(failures, self._run)  # type: ignore[arg-type]  # v2's
        return super()._initialize_and_run_controller(**settings)  # type: ignore[misc]  # v2's


class SizePolicy(ElasticScalingPolicy):
    """Decides the size, in Ray Train's controller, and tells each change as an event of the run."""

    def __init__(self, scaling_config: ScalingConfig, run: ElasticRun) -> None:
        super().__init__(scaling_config)
        self._run = run
        self._size = 0  # of the newest group
        self._most = run.sizes[-1]  # fewer, while a group of the size that seemed to fit could not be started
        self._looked_at = 0  # the step of the checkpoint after which the group could last have grown
        self._is_waiting = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many workers as fit; nothing while too few do."""
        self._maybe_send_resource_request()
        reserved = self._get_reserved_resources()
        if reserved is not None:
            if size := self._count_possible_workers(reserved):
                return self._get_resize_decision(size)
            if not self._is_waiting:
                self._is_waiting = True
                self._tell(f"waiting for room for a group of {self._run.sizes[0]}, the smallest allowed")
        time.sleep(_LOOK_EVERY_SECONDS)  # Ray Train would ask again at once, forever
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """A larger group if there is room for one and a checkpoint was written since this was last asked."""
        self._maybe_send_resource_request()
        step = self._run.last_saved()
        if step in (self._looked_at, self._run.num_steps):
            return NoopDecision()
        self._looked_at = step
        each, now = self.scaling_config._resources_per_worker_not_none, worker_group_state.num_workers
        size = self._run.largest(now + count_free(available_resources_per_node().values(), each))
        return self._get_resize_decision(size) if size > now else NoopDecision()

    def before_controller_execute_resize_decision(self, resize_decision: ResizeDecision) -> None:
        size, before = resize_decision.num_workers, self._size
        if size != before or self._is_waiting:
            why = ": a node was lost" if size < before else ": a node came" if 0 < before < size else ""
            self._tell(f"group of {size}{why}")
        self._size, self._looked_at, self._is_waiting = size, self._run.last_saved(), False

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        if isinstance(current_state, ReschedulingState):  # others took the room, or a lost node still counted
            self._most = self._run.largest(self._size - 1) or self._run.sizes[0]
        elif isinstance(current_state, RunningState):
            self._most = self._run.sizes[-1]

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        return self._run.largest(min(self._most, super()._count_possible_workers(reserved_resources)))

    def _get_reserved_resources(self) -> Any:
        """As Ray's, but of the nodes that are there now: a group that counts on a lost one waits for it for a minute.
        None if not known."""
        asked = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            reserved = ray.get(asked, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
        except ray.exceptions.RayError:  # it is busy, or being restarted
            return None
        # Ray takes a lost node to be alive for up to half a minute.
        at = {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes()}
        return {node: resources for node, resources in reserved.items() if node in at and answers(*at[node])}

    def _tell(self, message: str) -> None:
        log_event(self._run.folder, self._run.last_saved(), "group", message)


class FailuresWithoutProgress(DefaultFailurePolicy):
    """Counts the losses of a group from zero again once a checkpoint was written since the last one.

    A long run on nodes that come and go loses more groups than any limit would allow.
    """

    def __init__(self, failure_config: FailureConfig, run: ElasticRun) -> None:
        super().__init__(failure_config)
        self._run = run
        self._failed_after = run.last_saved()

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        step = self._run.last_saved()
        if step > self._failed_after:
            self._failed_after = step
            self._worker_group_failures = self._controller_failures = 0
        return super().make_decision(training_failed_error)


def count_free(nodes: Iterable[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many more workers with these resources fit on nodes of which this much is free."""
    return sum(min(int(node.get(kind, 0.0) / amount) for kind, amount in each.items() if amount) for node in nodes)
