"""Runs and stages as nodes of the graph, and a plan of stages as a folder that records what became of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.runs.lock import claim_folder, hold
from orchestrator.sweeps.graph import Node
from orchestrator.sweeps.references import resolve_with_references
from orchestrator.sweeps.stages.chain import PlannedStage, plan_stages
from orchestrator.sweeps.stages.records import StageRecord, summarise_chain
from orchestrator.sweeps.work import Work
from orchestrator.training.resolve import ReadyRun
from workers.durable import write_durably


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
        return resolve_with_references(self.config, run_id, work)


class StageNode(Node):
    """A stage, by its digest: plans that share it may call it by different names."""

    def __init__(self, planned: PlannedStage, parent: "StageNode | None") -> None:
        self.planned, self.parent = planned, parent
        self.key = planned.digest
        self.title = planned.find_folder().name
        self.cluster = planned.run.cluster

    def find_folder(self) -> Path:
        return self.planned.find_folder()

    @contextmanager
    def hold(self) -> Iterator[str]:
        """By its digest first: the folder's name is another where another plan began it meanwhile."""
        stages = self.planned.run.output_dir
        refusal = f"{self.title}: another process trains this stage"
        with hold(stages / f".{self.key}.lock", refusal), claim_folder(self._run()) as run_id:
            yield run_id

    def resolve(self, run_id: str, work: Work) -> ReadyRun:
        return resolve_with_references(self._run(), run_id, work)

    def record(self) -> StageRecord:
        return StageRecord.of(self.planned, self.find_folder())

    def _run(self) -> RunConfig:
        before = None if self.parent is None else self.parent.find_folder()
        return self.planned.started_from(before, self.find_folder())


def stage_nodes(config: PlanConfig, work: Work) -> list[StageNode]:
    """The stages of a plan, in order, with their data prepared."""
    nodes: list[StageNode] = []
    for planned in plan_stages(config, work.data.stores):
        nodes.append(StageNode(planned, None if planned.parent is None else nodes[planned.parent]))
    return nodes


def record_plan(config: PlanConfig, nodes: Sequence[StageNode]) -> None:
    """Write stages.json of the stages that are done, and once they all are, summary.json. Its folder is held."""
    records = [node.record() for node in nodes if node.is_finished()]
    content = [record.model_dump(mode="json") for record in records]
    write_durably(config.folder / "stages.json", json.dumps(content, indent=1).encode())
    if len(records) == len(nodes):
        summary = summarise_chain(config.name, [record.folder for record in records])
        write_durably(config.folder / "summary.json", summary.model_dump_json(indent=1).encode())


def read_records(folder: Path) -> list[StageRecord]:
    """The chain of a plan, as its stages.json tells it."""
    return [StageRecord.model_validate(entry) for entry in json.loads((folder / "stages.json").read_text())]
