"""Weights & Biases: a run with raymix's own run id, so that a resumed run is the same run there.

Offline runs are in the run folder (`wandb sync RUN/wandb/offline-run-*` uploads them). Weights & Biases only accepts
steps in increasing order.
"""

from collections.abc import Sequence

import wandb

from orchestrator.config.tracking import WandbConfig
from orchestrator.tracking.base import LastStep, RunIdentity, StepRecord, wall_time


class WandbTracker:
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
            reinit="create_new",  # a driver may train several runs at once
            # The terminal is raymix's, and the driver's own load says little about the training.
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        place = "/".join([str(self._run.entity or ""), self._run.project, run.run_id])
        self._progress = LastStep(run.folder / "wandb" / "last_step.json", place)
        # Online, the server also knows the next step that it expects.
        self.last_step = max(self._progress.read(), self._run.step - 1)

    def log(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self._run.log({**record.values, "_timestamp": wall_time(record)}, step=record.step)
        self.last_step = records[-1].step
        self._progress.write(self.last_step)

    def close(self, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)
