"""`raymix run`: one training, or a plan of stages, from its configuration to its result."""

import os
import shutil
from pathlib import Path

from rich.console import Console

from orchestrator.config.plan import PlanConfig
from orchestrator.runs.folder import is_finished
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.stages.nodes import read_records
from orchestrator.views.summary import summary_view
from workers.durable import commit_folder, temporary_folder


def run(config: PlanConfig, console: Console) -> None:
    """Train, or resume an interrupted run; a finished run only shows its summary again.

    Raises:
        FolderInUseError: another process is running it.
        TrainingFailedError: it ended without a result.
    """
    with claim_folder(config):
        is_done = is_finished(config.folder)
    if not is_done:
        _train(config)
    with claim_folder(config, waits=True):
        _write_reports(config)
    console.print(summary_view(config.folder))


def _train(config: PlanConfig) -> None:
    # Ray, torch and DeepSpeed take seconds to import; a finished run needs none of them.
    from orchestrator.sweeps.crews import Foreground
    from orchestrator.sweeps.stages.train import train_runs
    from orchestrator.sweeps.work import open_work
    from orchestrator.training.ray_train import TrainingFailedError

    with open_work(config.folder / "raymix.log", frees_lost_workers=False) as work:
        for reason in train_runs([config], work, Foreground(work.console)).values():
            raise TrainingFailedError(reason)


def _write_reports(config: PlanConfig) -> None:
    from orchestrator.views.report.html import write_report  # plotly and jinja

    if not config.stage_list:
        write_report([config.folder], config.folder / "report.html")
        return
    from orchestrator.sweeps.stages.page import write_plan_page

    folders = [record.folder for record in read_records(config.folder)]
    for folder in folders:
        if not (folder / "report.html").exists():
            write_report([folder], folder / "report.html")
    if (folders[-1] / "model").exists() and not (config.folder / "model").exists():
        link_folder(folders[-1] / "model", config.folder / "model")
    write_plan_page(config.folder / "report.html", config.name, folders)


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
