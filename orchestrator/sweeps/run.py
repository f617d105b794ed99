"""`raymix run`, one training or a plan of stages, from its configuration to its result; and the same for many at once,
which compare, coarse-search and the batches of tune train."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.runs.failure import explain
from orchestrator.runs.folder import is_finished
from orchestrator.runs.lock import FolderInUseError, claim_folder, hold
from orchestrator.sweeps.crews import Crew, Foreground
from orchestrator.sweeps.graph import run_graph
from orchestrator.sweeps.references import compute_references
from orchestrator.sweeps.stages.chain import PlannedStage, StageRecord, plan_stages, read_records, summarise_chain
from orchestrator.sweeps.stages.page import write_plan_page
from orchestrator.sweeps.work import Node, Work, open_work
from orchestrator.training.driver import ReadyRun, TrainingFailedError
from orchestrator.training.resolve import resolve_run
from orchestrator.views.report.html import write_report
from orchestrator.views.summary import summary_view
from workers.durable import commit_folder, temporary_folder, write_durably
from workers.storage.mirror import fetch_folder


def run(config: PlanConfig, console: Console) -> None:
    """Train, or resume an interrupted run; a finished run only shows its summary again.

    Raises:
        FolderInUseError: another process is running it.
        TrainingFailedError: it ended without a result.
    """
    with claim_folder(config):
        is_done = is_finished(config.folder)
    if not is_done:
        with open_work(config.folder / "raymix.log", frees_lost_workers=False) as work:
            for reason in train_runs([config], work, Foreground(work.console)).values():
                raise TrainingFailedError(reason)
    with claim_folder(config, waits=True):
        _write_reports(config)
    console.print(summary_view(config.folder))


class RunsFailedError(RuntimeError):
    """Some runs ended without a result; all others have one. `reasons` says why, by the run's name."""

    def __init__(self, reasons: Mapping[str, str], num_runs: int) -> None:
        self.reasons = dict(reasons)
        lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
        heading = f"{len(reasons)} of {num_runs} runs failed; the same command tries them again:"
        super().__init__("\n".join([heading, *lines]))


def train_runs(configs: Sequence[RunConfig], work: Work, crew: Crew, *, keeps_models: bool = True) -> dict[str, str]:
    """Train every run that has no result yet; without `keeps_models` keep only what others start from.

    Returns: name of each run that failed -> why; all others have a summary.json.

    ValueError if two of them have the same folder.
    """
    folders = [config.folder.resolve() for config in configs]
    if not folders:
        raise ValueError("no runs are given; give at least one configuration")
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"two runs have the same folder: {', '.join(twice)}; give them different names")
    plans = [config for config in configs if isinstance(config, PlanConfig) and config.stage_list]
    single = {config.name: RunNode(config) for config in configs if config not in plans}
    with ExitStack() as held:
        staged = _Plans(plans, work, held)
        nodes: list[Node] = [*single.values(), *staged.nodes()]
        failures = run_graph(nodes, work, crew, keeps_model=lambda node: keeps_models, after=staged.record)
        reasons = {name: failures[node.key] for name, node in single.items() if node.key in failures}
        return reasons | staged.finish(failures)


class RunNode(Node):
    """A run in the folder of its name."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.key = str(config.folder.resolve())
        self.title = config.name
        self.cluster = config.cluster

    def find_folder(self) -> Path:
        return self.config.folder

    def hold(self) -> AbstractContextManager[str]:
        return claim_folder(self.config)

    def resolve(self, run_id: str, work: Work) -> ReadyRun:
        return _resolve(self.config, run_id, work)


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
        return _resolve(self._run(), run_id, work)

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


def _resolve(config: RunConfig, run_id: str, work: Work) -> ReadyRun:
    stores = work.data.stores(config)
    measure = partial(compute_references, stores=stores, work=work, run_folder=config.folder)
    return resolve_run(config, run_id, stores, work.console, measure, prints_findings=work.data.is_new(config))


class _Plans:
    """Plans of stages that are trained together.

    A plan's folder is held while its stages are trained, so that others see it running. Where another process holds
    it, that process trains the same plan: its stages are waited for one by one, and its files at the end.
    """

    def __init__(self, configs: Sequence[PlanConfig], work: Work, held: ExitStack) -> None:
        self._stages: dict[str, tuple[PlanConfig, list[StageNode]]] = {}
        self._elsewhere: set[str] = set()
        self._reasons: dict[str, str] = {}
        for config in configs:
            try:
                try:
                    held.enter_context(claim_folder(config))
                except FolderInUseError:
                    self._elsewhere.add(config.name)
                if not is_finished(config.folder):
                    work.start_ray([config.cluster])
                    self._stages[config.name] = config, stage_nodes(config, work)
            except (ValueError, RuntimeError, OSError) as error:
                self._reasons[config.name] = explain(error)

    def nodes(self) -> list[StageNode]:
        return [node for _, nodes in self._stages.values() for node in nodes]

    def record(self) -> None:
        for name, (config, nodes) in self._stages.items():
            if name not in self._elsewhere:
                _record_plan(config, nodes)

    def finish(self, failures: Mapping[str, str]) -> dict[str, str]:
        """Write the summaries; name of each plan without one -> why."""
        for name, (config, nodes) in self._stages.items():
            failed = next((node for node in nodes if node.key in failures), None)
            if failed is not None:
                self._reasons[name] = f"stage {failed.planned.stage.name}: {failures[failed.key]}"
            elif name in self._elsewhere:
                with claim_folder(config, waits=True):
                    _record_plan(config, nodes)
            else:
                _record_plan(config, nodes)
        return self._reasons


def _record_plan(config: PlanConfig, nodes: Sequence[StageNode]) -> None:
    """Write stages.json of the stages that are done, and once they all are, summary.json. Its folder is held."""
    records = [node.record() for node in nodes if node.is_finished()]
    content = [record.model_dump(mode="json") for record in records]
    write_durably(config.folder / "stages.json", json.dumps(content, indent=1).encode())
    if len(records) == len(nodes):
        summary = summarise_chain(config.name, [record.folder for record in records])
        write_durably(config.folder / "summary.json", summary.model_dump_json(indent=1).encode())


def _write_reports(config: PlanConfig) -> None:
    folders = [record.folder for record in read_records(config.folder)] if config.stage_list else []
    if not folders:
        write_report([config.folder], config.folder / "report.html")
        return
    for folder in folders:
        if not (folder / "report.html").exists():
            write_report([folder], folder / "report.html")
    fetch_folder(folders[-1] / "model")
    if (folders[-1] / "model").exists() and not (config.folder / "model").exists():
        _link_folder(folders[-1] / "model", config.folder / "model")
    write_plan_page(config.folder / "report.html", config.name, folders)


def _link_folder(source: Path, target: Path) -> None:
    """The same files under another folder: hard links where the file system has them, else copies."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    temporary = temporary_folder(target)
    shutil.copytree(source, temporary, copy_function=link_or_copy, dirs_exist_ok=True)
    commit_folder(temporary, target)
