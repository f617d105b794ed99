"""A crew trains runs that are ready: one at a time before the user's eyes, or many side by side."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from orchestrator.cluster.nodes import on_this_node
from orchestrator.cluster.session import check_resources, count_fitting
from orchestrator.sweeps.work import Node
from orchestrator.training.driver import ReadyRun, train
from orchestrator.views.runs import RunsView
from orchestrator.views.terminal import LiveView, RunView

if TYPE_CHECKING:
    import ray


class Crew(Protocol):
    """Trains runs, and shows it."""

    @property
    def num_running(self) -> int: ...

    def open(self, nodes: Sequence[Node]) -> None:
        """Begin, with these nodes to be trained, at least one; inside a Ray session."""

    def has_room(self) -> bool: ...

    def check(self, node: Node) -> None:
        """Refuse what can never be trained, before anything is measured for it.

        ResourceError if the cluster can never hold it.
        """
        check_resources(node.cluster)

    def start(self, node: Node, run: ReadyRun) -> None: ...

    def wait(self, seconds: float | None) -> list[tuple[Node, BaseException | None]]:
        """The runs that ended, at least one of those that are running, unless the time is over first."""

    def paused(self) -> AbstractContextManager[None]:
        """Leave the terminal to others for a while."""
        return nullcontext()

    def close(self, is_interrupted: bool) -> None:
        """End. Where the user interrupts, runs under way write a checkpoint first."""


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

    `make_view` shows the runs under way; by default, a line for each that ends, and bars in a terminal. `at_most` is a
    limit for the runs at a time, whatever there is room for.
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

        cluster, is_alone = run.cluster, run.cluster.max_workers == 1
        # One worker is the task itself. More have a separate placement group, which Ray Train asks for.
        num_cpus, num_gpus = (cluster.cpus_per_worker, cluster.gpus_per_worker) if is_alone else (0, 0)
        task: Any = ray.remote(train).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_retries=cluster.max_failures,
            retry_exceptions=False,
            **on_this_node(run.plan.folder),
        )
        self._begun[run.plan.folder] = run.plan.num_steps
        self._tasks[task.remote(run, in_this_process=is_alone)] = node

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
                ray.cancel(task, recursive=False)  # which arrives there as Ctrl-C does
            self._console.print("stopping: every run writes a checkpoint first; Ctrl-C again stops at once")
            ray.wait(list(self._tasks), num_returns=len(self._tasks))
        self._view.__exit__(None, None, None)


def _error_of(task: "ray.ObjectRef") -> Exception | None:
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error.cause))
    except ray.exceptions.RayError as error:
        return RuntimeError(f"its process was lost: {str(error).strip().splitlines()[0]}")
    return None
