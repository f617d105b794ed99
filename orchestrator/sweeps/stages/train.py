"""Runs, of one training or of several stages -> trained: for run, compare, coarse-search and the batches of tune."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.runs.failure import explain
from orchestrator.runs.folder import is_finished
from orchestrator.runs.lock import FolderInUseError, claim_folder
from orchestrator.sweeps.graph import Crew, Node, run_graph
from orchestrator.sweeps.stages.nodes import RunNode, StageNode, record_plan, stage_nodes
from orchestrator.sweeps.work import Work


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

    Raises:
        ValueError: two of them have the same folder.
    """
    _check_distinct(configs)
    plans = [config for config in configs if isinstance(config, PlanConfig) and config.stage_list]
    single = {config.name: RunNode(config) for config in configs if config not in plans}
    with ExitStack() as held:
        staged = _Plans(work, held)
        for config in plans:
            staged.add(config)
        nodes: list[Node] = [*single.values(), *staged.nodes()]
        failures = run_graph(nodes, work, crew, keeps_model=lambda node: keeps_models, after=staged.record)
        reasons = {name: failures[node.key] for name, node in single.items() if node.key in failures}
        return reasons | staged.finish(failures)


class _Plans:
    """Plans of stages that are trained together.

    A plan's folder is held while its stages are trained, so that others see it running. Where another process holds
    it, that process trains the same plan: its stages are waited for one by one, and its files at the end.
    """

    def __init__(self, work: Work, held: ExitStack) -> None:
        self._work, self._held = work, held
        self._stages: dict[str, tuple[PlanConfig, list[StageNode]]] = {}
        self._elsewhere: set[str] = set()
        self._reasons: dict[str, str] = {}

    def add(self, config: PlanConfig) -> None:
        """Prepare its data, unless it is done."""
        try:
            try:
                self._held.enter_context(claim_folder(config))
            except FolderInUseError:
                self._elsewhere.add(config.name)
            if not is_finished(config.folder):
                self._work.start_ray([config.cluster])
                self._stages[config.name] = config, stage_nodes(config, self._work)
        except (ValueError, RuntimeError, OSError) as error:
            self._reasons[config.name] = explain(error)

    def nodes(self) -> list[StageNode]:
        return [node for _, nodes in self._stages.values() for node in nodes]

    def record(self) -> None:
        for name, (config, nodes) in self._stages.items():
            if name not in self._elsewhere:
                record_plan(config, nodes)

    def finish(self, failures: Mapping[str, str]) -> dict[str, str]:
        """Write the summaries; name of each plan without one -> why."""
        for name, (config, nodes) in self._stages.items():
            failed = next((node for node in nodes if node.key in failures), None)
            if failed is not None:
                self._reasons[name] = f"stage {failed.planned.stage.name}: {failures[failed.key]}"
            elif name in self._elsewhere:
                with claim_folder(config, waits=True):
                    record_plan(config, nodes)
            else:
                record_plan(config, nodes)
        return self._reasons


def _check_distinct(configs: Sequence[RunConfig]) -> None:
    if not configs:
        raise ValueError("no runs are given; give at least one configuration")
    folders = [config.folder.resolve() for config in configs]
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"two runs have the same folder: {', '.join(twice)}; give them different names")
