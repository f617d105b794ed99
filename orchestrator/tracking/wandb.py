"""Weights & Biases: a run whose id is raymix's own, so that a run that goes on is the same run there.

Offline runs lie in the run's folder (`wandb sync RUN/wandb/offline-run-*` uploads them). Steps only ever go forward in
Weights & Biases, as they do here.
"""

from collections.abc import Sequence

import wandb

from orchestrator.config.tracking import WandbConfig
from orchestrator.tracking.base import LastStep, RunIdentity, wall_time
from orchestrator.tracking.records import StepRecord


class WandbTracker:
    """See `Tracker`."""

    def __init__(self, settings: WandbConfig, run: RunIdentity) -> None:
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            id=run.run_id,
            name=run.name,
            dir=run.folder,
            config=run.config,
            resume="allow",
            reinit="create_new",  # several runs may be under way in one driver
            # The terminal is raymix's, and this machine's load says little: the work is done on others.
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        place = "/".join([str(self._run.entity or ""), self._run.project, run.run_id])
        self._progress = LastStep(run.folder / "wandb" / "last_step.json", place)
        # Online, what the server holds counts as well: the next step that it would take.
        self.last_step = max(self._progress.read(), self._run.step - 1)

    def log(self, records: Sequence[StepRecord]) -> None:
        """See `Tracker`."""
        for record in records:
            self._run.log({**record.values, "_timestamp": wall_time(record)}, step=record.step)
        self.last_step = records[-1].step
        self._progress.write(self.last_step)

    def close(self, is_finished: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if is_finished else 1)
