"""Single trainings and plans of stages side by side: what other stages start from, wave after wave, then the rest.

Stages that plans share are trained once, as everywhere; see orchestrator/sweeps/stages.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.running import TrialsFailedError, run_trials
from orchestrator.sweeps.stages.chain import PlannedStage, plan_stages
from orchestrator.sweeps.stages.records import StageRecord, summarise_chain
from orchestrator.sweeps.study.running import prepare_once
from workers.durable import write_durably


@dataclass(frozen=True)
class _Plan:
    config: RunConfig
    stages: list[PlannedStage]

    @property
    def depths(self) -> list[int]:
        """Of each stage, how many stages lie between it and the base model."""
        depths: list[int] = []
        for stage in self.stages:
            depths.append(0 if stage.parent is None else depths[stage.parent] + 1)
        return depths

    @property
    def started_from(self) -> set[int]:
        """The stages that others start from, and whose models are therefore kept."""
        return {stage.parent for stage in self.stages if stage.parent is not None}


def run_chains(configs: Sequence[RunConfig], console: Console, *, keep_models: bool = False) -> dict[str, str]:
    """Do every run that is not done yet, a plan of stages being a run as well.

    Args:
        configs: the runs.
        console: where progress goes.
        keep_models: False keeps only numbers, and models of stages that others of these runs start from.

    Returns: name of each run that failed -> why; all others have a summary.json.
    """
    single = [config for config in configs if not config.stage_list]
    with ExitStack() as claims:
        plans = _plan(configs, console, claims)
        folders = _find_folders(plans)
        failed: dict[Path, str] = {}
        kept = {folders[plan.stages[i].digest] for plan in plans for i in plan.started_from}
        for depth in range(max((max(plan.depths) for plan in plans), default=0)):
            wave = {run.folder: run for plan in plans for run in _runs(plan, folders, failed, depth)}
            failed |= _run([run for folder, run in wave.items() if folder in kept], console, keep_models=True)
        last = {run.folder: run for plan in plans for run in _runs(plan, folders, failed, None)}
        everything = [*single, *(run for folder, run in last.items() if folder not in kept)]
        failed |= _run(everything, console, keep_models=keep_models)
        failures = {config.name: failed[config.folder] for config in single if config.folder in failed}
        for plan in plans:
            failures |= _finish(plan, folders, failed)
    return failures


def _plan(configs: Sequence[RunConfig], console: Console, claims: ExitStack) -> list[_Plan]:
    """The plans that are not done, with their data prepared; their folders are held."""
    prepare = prepare_once(console)
    plans = []
    for config in configs:
        if config.stage_list:
            claims.enter_context(claim_folder(config))
            if not (config.folder / "summary.json").exists():
                plans.append(_Plan(config, plan_stages(config, prepare)))
    return plans


def _find_folders(plans: Sequence[_Plan]) -> dict[str, Path]:
    """Digest -> folder: plans may call the same stage by different names."""
    folders: dict[str, Path] = {}
    for stage in (stage for plan in plans for stage in plan.stages):
        if stage.digest not in folders:
            folders[stage.digest] = stage.find_folder()
    return folders


def _runs(plan: _Plan, folders: dict[str, Path], failed: dict[Path, str], depth: int | None) -> list[RunConfig]:
    """The plan's stages of a depth (None: of any) whose parents are done."""
    runs = []
    for stage, stage_depth in zip(plan.stages, plan.depths, strict=True):
        parent = None if stage.parent is None else folders[plan.stages[stage.parent].digest]
        is_ready = parent is None or (parent not in failed and (parent / "summary.json").exists())
        if is_ready and depth in (None, stage_depth):
            runs.append(stage.started_from(parent, folders[stage.digest]))
    return runs


def _run(runs: Sequence[RunConfig], console: Console, *, keep_models: bool) -> dict[Path, str]:
    if not runs:
        return {}
    try:
        run_trials(runs, console, keep_models=keep_models)
    except TrialsFailedError as error:
        return {run.folder: error.reasons[run.name] for run in runs if run.name in error.reasons}
    return {}


def _finish(plan: _Plan, folders: dict[str, Path], failed: dict[Path, str]) -> dict[str, str]:
    """Write the plan's summary; the reason where one of its stages failed."""
    for stage in plan.stages:
        if (folder := folders[stage.digest]) in failed:
            return {plan.config.name: f"stage {stage.stage.name}: {failed[folder]}"}
    records = [StageRecord.of(stage, folders[stage.digest]) for stage in plan.stages]
    folder = plan.config.folder
    content = [record.model_dump(mode="json") for record in records]
    write_durably(folder / "stages.json", json.dumps(content, indent=1).encode())
    summary = summarise_chain(plan.config.name, [record.folder for record in records])
    write_durably(folder / "summary.json", summary.model_dump_json(indent=1).encode())
    return {}
