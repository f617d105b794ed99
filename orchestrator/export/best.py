"""The best model of a run that was cut off, before anything resumes it."""

from pathlib import Path

from rich.console import Console

from orchestrator.config.sweep import read_begun
from orchestrator.prepare.data import PreparedData
from orchestrator.prepare.importance import with_importance
from orchestrator.runs.lock import hold_run
from orchestrator.training.plan import build_plan
from orchestrator.views.console import redirect_output
from workers.storage.addresses import shown
from workers.storage.checkpoints import fetch_checkpoints

_KEPT = Path("checkpoints") / "best"


def is_kept(run_folder: Path) -> bool:
    """Whether a run has a best model that is not a folder yet: while it is trained, or after it was killed."""
    fetch_checkpoints(run_folder / "checkpoints")
    return (run_folder / _KEPT).exists()


def write_kept(run_folder: Path, console: Console) -> None:
    """Write `best/` of a run whose best model is kept beside its checkpoints.

    Raises:
        FolderInUseError: it is being trained, and writes `best/` itself when that ends.
        ValueError: a file of the best model is damaged, or the data or the base model cannot be read.
        ExportError: the written folder is not the model; it is absent then.
    """
    refusal = f"{shown(run_folder)}: the run is being trained; best/ is written when it ends or is stopped"
    with hold_run(run_folder, refusal):
        # The folder may have been moved since.
        config = read_begun(run_folder).replaced(output_dir=run_folder.parent, name=run_folder.name)
        stores = PreparedData(console).stores(config)
        plan = build_plan(with_importance(config, stores, console), "", stores).replaced(folder=run_folder.resolve())
        from workers.training.cut_off import write_best  # imports torch

        with redirect_output(run_folder / "raymix.log"):
            write_best(plan)
