"""The two ways in which ready runs are trained: one at a time before the user's eyes, or many side by side."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.cluster.resources import count_fitting
from orchestrator.config.cluster import ClusterConfig
from orchestrator.sweeps.graph import Crew, Node
from orchestrator.training.driver import train
from orchestrator.training.resolve import ReadyRun
from orchestrator.views.runs import RunsView
from orchestrator.views.terminal import LiveView, RunView

if TYPE_CHECKING:
    import ray


class Foreground(Crew):
    """One run at a time, by a worker group, with its own live view."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ended: list[tuple[Node, BaseException | None]] = []
        self._num_begun = self._num_runs = 0

    @property
    def num_running(self) -> int:
        return len(self._ended)

    def open(self, nodes: Sequence[Node]) -> None:
        self._num_runs = len(nodes)

    def has_room(self) -> bool:
        """Only when the run before is over."""
        return not self._ended

    def start(self, node: Node, run: ReadyRun) -> None:
        """Train to the end."""
        self._num_begun += 1
        if self._num_runs > 1:
            place = f"{self._num_begun} of {self._num_runs}: {node.title}"
            self._console.print(place, markup=False, highlight=False)
        view = RunView(run.plan.folder, list(run.plan.domains), run.plan.num_steps, self._console)
        error: Exception | None = None
        try:
            with view:
                train(run)
        except Exception as failure:  # of any kind; the graph decides what follows from it
            error = failure
        self._ended.append((node, error))

    def wait(self, seconds: float | None) -> list[tuple[Node, BaseException | None]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self, is_interrupted: bool) -> None:
        """A run that is interrupted has written its checkpoint by now."""


MakeView = Callable[[Mapping[Path, int], int], LiveView]
"""(folder -> steps of each run that has begun, growing; how many there will be) -> the view."""


class SideBySide(Crew):
    """As many runs as the cluster has room for, each a Ray task: the rank itself, or the driver of a worker group.

    Args:
        console: where progress goes.
        make_view: shows the runs under way; default: a line for each that ends, and bars in a terminal.
        at_most: runs at a time, whatever there is room for.
    """

    def __init__(self, console: Console, make_view: MakeView | None = None, at_most: int | None = None) -> None:
        self._console, self._at_most = console, at_most
        self._make_view = make_view or (lambda begun, num_runs: RunsView(lambda: begun, num_runs, console))
        self._begun: dict[Path, int] = {}
        self._tasks: dict[ray.ObjectRef, Node] = {}
        self._room = 0

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    def open(self, nodes: Sequence[Node]) -> None:
        room = count_fitting([node.cluster for node in nodes])
        self._room = min(room, self._at_most or room)
        self._view = self._make_view(self._begun, len(nodes))
        self._view.__enter__()

    def has_room(self) -> bool:
        """Drivers of worker groups would wait for each other's workers without end where there are too many."""
        return len(self._tasks) < self._room

    def start(self, node: Node, run: ReadyRun) -> None:
        """Submit it. A task whose process is lost is tried again, and resumes; one that failed would fail again."""
        import ray  # here and not above: a run that is finished does without

        self._begun[run.plan.folder] = run.plan.num_steps
        task = ray.remote(_train_task).options(
            **_task_resources(run.cluster), max_retries=run.cluster.max_failures, retry_exceptions=False
        )
        self._tasks[task.remote(run)] = node

    def wait(self, seconds: float | None) -> list[tuple[Node, BaseException | None]]:
        import ray

        done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [(self._tasks.pop(task), _error_of(task)) for task in done]

    def paused(self) -> AbstractContextManager[None]:
        return self._view.paused()

    def close(self, is_interrupted: bool) -> None:
        """Where the user interrupts, ask every run to end by a checkpoint, and wait for that."""
        if is_interrupted and self._tasks:
            import ray

            for task in self._tasks:
                ray.cancel(task, recursive=False)
            self._console.print("stopping: every run writes a checkpoint first; Ctrl-C again stops at once")
            ray.wait(list(self._tasks), num_returns=len(self._tasks))
        self._view.__exit__(None, None, None)


def _task_resources(cluster: ClusterConfig) -> dict[str, float]:
    """One worker is the task itself. More have a separate placement group, which Ray Train asks for."""
    if cluster.num_workers > 1:
        return {"num_cpus": 0}
    return {"num_cpus": cluster.cpus_per_worker, "num_gpus": cluster.gpus_per_worker}


def _train_task(run: ReadyRun) -> None:
    """Ray's cancellation arrives as Ctrl-C does: a checkpoint, then the end."""
    train(run, in_this_process=run.cluster.num_workers == 1)


def _error_of(task: "ray.ObjectRef") -> Exception | None:
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error.cause))
    except ray.exceptions.RayError as error:
        return RuntimeError(f"its process was lost: {str(error).strip().splitlines()[0]}")
    return None
