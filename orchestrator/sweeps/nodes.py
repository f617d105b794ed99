"""A single training as a node of the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.run import RunConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.graph import Node
from orchestrator.sweeps.references import resolve
from orchestrator.sweeps.work import Work
from orchestrator.training.resolve import ReadyRun


class RunNode(Node):
    """A run in the folder of its name."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.key = str(config.folder.resolve())
        self.title = config.name
        self.cluster = config.cluster

    def find_folder(self) -> Path:
        return self.config.folder

    @contextmanager
    def hold(self) -> Iterator[str]:
        with claim_folder(self.config) as run_id:
            yield run_id

    def resolve(self, run_id: str, work: Work) -> ReadyRun:
        return resolve(self.config, run_id, work)
