"""A training as the graph sees it; what the trainings of one command share: a console, Ray, and prepared data; and what
a command leaves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.machine import crowding
from orchestrator.prepare.data import PreparedData
from orchestrator.runs.folder import is_finished
from orchestrator.runs.summary import write_summary
from orchestrator.training.driver import ReadyRun
from orchestrator.views.console import redirect_output
from orchestrator.views.table import ResultTable
from workers.durable import write_durably


class Work:
    """Made by `open_work`."""

    def __init__(self, console: Console, session: ExitStack, *, frees_lost_workers: bool) -> None:
        self.console = console
        self.data = PreparedData(console)
        self._session, self._frees_lost_workers = session, frees_lost_workers
        self._is_started = False

    def start_ray(self, clusters: Iterable[ClusterConfig]) -> None:
        """Start Ray, or join the cluster, as the run with most workers needs it; once, however often it is asked."""
        if self._is_started:
            return
        asked = list(clusters)
        cluster = max(asked, key=lambda cluster: cluster.min_workers * cluster.cpus_per_worker)
        # A run of one worker is a task, without a group whose resources could be lost.
        needs_dashboard = self._frees_lost_workers and any(each.max_workers > 1 for each in asked)
        self.console.print(f"starting Ray ({cluster.address})", markup=False, highlight=False)
        if warning := crowding(cluster):
            self.console.print(warning, style="yellow", markup=False, highlight=False)
        self._session.enter_context(ray_session(cluster, include_dashboard=needs_dashboard))
        self._is_started = True


@contextmanager
def open_work(log: Path, *, frees_lost_workers: bool = True) -> Iterator[Work]:
    """Send what libraries print to `log`, and end the Ray session with the command.

    `frees_lost_workers` is for commands that continue after a lost driver; Ray's dashboard takes seconds to start.
    """
    with redirect_output(log) as console, ExitStack() as session:
        yield Work(console, session, frees_lost_workers=frees_lost_workers)


class Node(ABC):
    """A training, and the training that it starts from."""

    key: str
    """What its result depends on. Nodes of the same key are one training, whatever plans or runs call it."""
    title: str
    """Its name for the user."""
    cluster: ClusterConfig
    """What it is trained on."""
    parent: "Node | None" = None
    """The training that it starts from; None for the base model."""

    @abstractmethod
    def find_folder(self) -> Path:
        """Where its files are, or will be."""

    @abstractmethod
    def hold(self) -> AbstractContextManager[str]:
        """Hold its folder and yield the run's id; FolderInUseError if another process trains it."""

    @abstractmethod
    def resolve(self, run_id: str, work: Work) -> ReadyRun:
        """Everything that comes before the training; its folder is held, and its parent is done."""

    def is_finished(self) -> bool:
        return is_finished(self.find_folder())

    def finish(self, run: ReadyRun, work: Work) -> None:
        write_summary(run.plan.folder, run.num_bad_rows)


def publish(record: BaseModel, table: ResultTable, page: Path, console: Console, max_rows: int | None = None) -> None:
    """Write the record as JSON and the table as CSV beside the page, print the table and say where the page is."""
    write_durably(page.with_suffix(".json"), record.model_dump_json(indent=1).encode())
    write_durably(page.with_suffix(".csv"), table.to_csv().encode())
    console.print(table.to_rich(max_rows))
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
