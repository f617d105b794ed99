"""TensorBoard: event files in the run's folder, so that `tensorboard --logdir runs` shows all runs.

Written by tensorboardX, which comes with Ray Tune: the driver needs neither torch nor TensorBoard itself. Only who
looks at them does (`pip install 'raymix[tensorboard]'`). Its SummaryWriter hands events to a thread of its own, and its
flush does not wait for that thread; so the file is written here, by the part below it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from orchestrator.config.tracking import TensorBoardConfig
from orchestrator.tracking.base import LastStep, RunIdentity, wall_time
from orchestrator.tracking.records import StepRecord


class TensorBoardTracker:
    """See `Tracker`. What a killed driver wrote beyond `last_step` is purged and written again."""

    def __init__(self, settings: TensorBoardConfig, run: RunIdentity) -> None:
        folder = Path(settings.folder) / run.name if settings.folder else run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._progress = LastStep(folder / "last_step.json", run.run_id)
        self.last_step = self._progress.read()
        next_step = self.last_step + 1
        # Named by seconds alone, the file of a driver that comes back at once would take the place of the older one.
        self._writer = EventsWriter(str(folder / "events"), f".{next_step:08d}")
        # TensorBoard's purge: whatever older files hold of this step and later ones is not shown.
        begun = Event(wall_time=time.time(), step=next_step, session_log=SessionLog(status=SessionLog.START))
        self._writer.write_event(begun)

    def log(self, records: Sequence[StepRecord]) -> None:
        """See `Tracker`."""
        for record in records:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in record.values.items()]
            self._writer.write_event(
                Event(wall_time=wall_time(record), step=record.step, summary=Summary(value=values))
            )
        self._writer.flush()
        self.last_step = records[-1].step
        self._progress.write(self.last_step)

    def close(self, is_finished: bool) -> None:
        """See `Tracker`."""
        self._writer.close()
