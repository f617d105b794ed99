"""What the runs of one command share: a console, a Ray session, and the data that was prepared for them."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.machine import crowding
from orchestrator.prepare.data import PreparedData
from orchestrator.views.console import redirect_output


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
        from orchestrator.cluster.session import ray_session  # seconds, and a command whose runs are done needs none

        cluster = max(clusters, key=lambda cluster: cluster.num_workers * cluster.cpus_per_worker)
        self.console.print(f"starting Ray ({cluster.address})", markup=False, highlight=False)
        if warning := crowding(cluster):
            self.console.print(warning, style="yellow", markup=False, highlight=False)
        self._session.enter_context(ray_session(cluster, include_dashboard=self._frees_lost_workers))
        self._is_started = True


@contextmanager
def open_work(log: Path, *, frees_lost_workers: bool = True) -> Iterator[Work]:
    """Send what libraries print to `log`, and end the Ray session with the command.

    Ray frees what a worker group held whose driver died only where its dashboard runs, which takes seconds to start:
    `frees_lost_workers` is for commands that continue after that.
    """
    with redirect_output(log) as console, ExitStack() as session:
        yield Work(console, session, frees_lost_workers=frees_lost_workers)
