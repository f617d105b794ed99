"""TensorBoard: event files in the run's folder, so that `tensorboard --logdir runs` shows all runs.

They are written with tensorboardX, which comes with Ray Tune: the driver needs neither torch nor TensorBoard, only the
viewer does (`pip install 'raymix[tensorboard]'`). tensorboardX's SummaryWriter passes events to a thread and its flush
does not wait for it, so the lower-level EventsWriter is used.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from orchestrator.config.tracking import TensorBoardConfig
from orchestrator.tracking.base import LastStep, RunIdentity, StepRecord, wall_time


class TensorBoardTracker:
    """A tracker whose entries beyond `last_step`, left by a killed driver, are purged and written again."""

    def __init__(self, settings: TensorBoardConfig, run: RunIdentity) -> None:
        folder = Path(settings.folder) / run.name if settings.folder else run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._progress = LastStep(folder / "last_step.json", run.run_id)
        self.last_step = self._progress.read()
        next_step = self.last_step + 1
        # Named by seconds alone, the file of a driver that restarts at once would overwrite the older one.
        self._writer = EventsWriter(str(folder / "events"), f".{next_step:08d}")
        # TensorBoard's purge: entries of older files for this and later steps are not shown.
        begun = Event(wall_time=time.time(), step=next_step, session_log=SessionLog(status=SessionLog.START))
        self._writer.write_event(begun)

    def log(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in record.values.items()]
            self._writer.write_event(
                Event(wall_time=wall_time(record), step=record.step, summary=Summary(value=values))
            )
        self._writer.flush()
        self.last_step = records[-1].step
        self._progress.write(self.last_step)

    def close(self, is_finished: bool) -> None:
        self._writer.close()
