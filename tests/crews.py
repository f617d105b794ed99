"""Crews for tests of the graph: trainings in this process, real ones or pretended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from orchestrator.config.cluster import ClusterConfig
from orchestrator.sweeps.work import Node, Work
from orchestrator.training.driver import ReadyRun


class WorkHere(Work):
    """Work without a Ray session."""

    def __init__(self) -> None:
        self.output = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
        super().__init__(self.output, None, frees_lost_workers=False)  # type: ignore[arg-type]

    def start_ray(self, clusters: Sequence[ClusterConfig]) -> None:  # type: ignore[override]
        """Trainings are in this process."""


class OneByOne:
    """Trains in this process, one after the other; remembers what it was given.

    Args:
        train: trains a run that is ready, or pretends to.
        room: how many may be begun before the first of them is looked at.
    """

    def __init__(self, train: Callable[[ReadyRun], None], room: int = 1) -> None:
        self._train, self._room = train, room
        self._ended: list[tuple[Node, BaseException | None]] = []
        self.trained: list[str] = []
        self.kept_models: dict[str, bool] = {}

    @property
    def num_running(self) -> int:
        return len(self._ended)

    def open(self, nodes: Sequence[Node]) -> None:
        self._ended = []

    def has_room(self) -> bool:
        return len(self._ended) < self._room

    def check(self, node: Node) -> None:
        pass

    def start(self, node: Node, run: ReadyRun) -> None:
        self.trained.append(run.plan.folder.name)
        self.kept_models[run.plan.folder.name] = run.plan.export
        try:
            self._train(run)
        except Exception as error:
            self._ended.append((node, error))
        else:
            self._ended.append((node, None))

    def wait(self, seconds: float | None) -> list[tuple[Node, BaseException | None]]:
        ended, self._ended = self._ended, []
        return ended

    @contextmanager
    def paused(self) -> Iterator[None]:
        yield

    def close(self, is_interrupted: bool) -> None:
        pass
