"""A plan of stages from its configuration to its result: each stage trained, or found, in order.

What a plan has reached is what its stages' folders hold, so a plan that was killed goes on at the right stage. A stage
that another process trains at this moment is waited for.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.machine import crowding
from orchestrator.config.run import RunConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.stages.chain import PlannedStage, plan_stages
from orchestrator.sweeps.stages.page import write_plan_page
from orchestrator.sweeps.stages.records import StageRecord, summarise_chain
from orchestrator.training.driver import prepare, train_here
from orchestrator.views.quiet import chatter_to
from orchestrator.views.report import write_report
from orchestrator.views.summary import summary_view
from workers.durable import commit_folder, temporary_folder, write_durably

Train = Callable[[RunConfig, str, Console], None]
"""Trains an ordinary run, by its configuration and id, to its summary.json."""


def run_stages(config: RunConfig, console: Console) -> None:
    """Train the stages that no plan has trained yet, in order; a finished plan only shows its summary again."""
    with claim_folder(config):
        if not (config.folder / "summary.json").exists():
            with chatter_to(config.folder / "raymix.log") as quiet_console:
                quiet_console.print(f"{config.name}: starting Ray ({config.cluster.address})", markup=False)
                if warning := crowding(config.cluster):
                    quiet_console.print(warning, style="yellow", markup=False, highlight=False)
                with ray_session(config.cluster):
                    complete_chain(config, quiet_console, train_here)
        folders = [record.folder for record in read_records(config.folder)]
        write_plan_page(config.folder / "report.html", config.name, folders)
        console.print(summary_view(config.folder))


def read_records(folder: Path) -> list[StageRecord]:
    """The chain of a plan, as its stages.json tells it."""
    return [StageRecord.model_validate(entry) for entry in json.loads((folder / "stages.json").read_text())]


def complete_chain(config: RunConfig, console: Console, train: Train) -> None:
    """All stages in order, and the plan's own files."""
    chain = plan_stages(config, lambda run: prepare(run, console))
    records: list[StageRecord] = []
    for number, planned in enumerate(chain, start=1):
        parent = None if planned.parent is None else records[planned.parent].folder
        console.print(f"stage {number} of {len(chain)}: {planned.stage.name}", markup=False, highlight=False)
        folder = complete_stage(planned, parent, console, train)
        records.append(StageRecord.of(planned, folder))
        content = [record.model_dump(mode="json") for record in records]
        write_durably(config.folder / "stages.json", json.dumps(content, indent=1).encode())
    link_folder(records[-1].folder / "model", config.folder / "model")
    summary = summarise_chain(config.name, [record.folder for record in records])
    write_durably(config.folder / "summary.json", summary.model_dump_json(indent=1).encode())


def complete_stage(planned: PlannedStage, parent_folder: Path | None, console: Console, train: Train) -> Path:
    """The folder of a finished stage: trained here, unless it is finished already."""
    with sole_trainer(planned, console):
        folder = planned.find_folder()
        if (folder / "summary.json").exists():
            console.print(f"  found in {folder}", markup=False, highlight=False)
            return folder
        run = planned.started_from(parent_folder, folder)
        with claim_folder(run) as run_id:
            train(run, run_id, console)
            write_report([folder], folder / "report.html")
    return folder


@contextmanager
def sole_trainer(planned: PlannedStage, console: Console) -> Iterator[None]:
    """Hold the stage, by its digest: two plans that share it may call it by different names."""
    stages = planned.run.output_dir
    stages.mkdir(parents=True, exist_ok=True)
    lock = FileLock(stages / f".{planned.digest}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print("  another process is training this stage; waiting for it", markup=False)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def link_folder(source: Path, target: Path) -> None:
    """The same files under another folder: hard links where the file system has them, else copies."""
    temporary = temporary_folder(target)
    shutil.copytree(source, temporary, copy_function=_link_or_copy, dirs_exist_ok=True)
    commit_folder(temporary, target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
