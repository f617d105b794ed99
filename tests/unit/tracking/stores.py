"""What the trackers wrote, read back by the trackers' own means."""

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.config.tracking import MLflowConfig, TensorBoardConfig, TrackerConfig

Series = dict[str, list[tuple[int, float]]]
"""Key -> (step, value), in the order of writing."""


def read_tensorboard(folder: Path) -> Series:
    """Event files, with what a later file purges taken out, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def read_mlflow(tracking_uri: str, run_id: str) -> tuple[Any, Series]:
    """The one run with this tag, and its metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, filter_string=f"tags.`raymix.run_id` = '{run_id}'")
    series = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return run, series


def read_wandb(folder: Path) -> tuple[list[Any], Series]:
    """The offline runs in a folder, oldest first, and the history that all of them hold."""
    runs, series = [], defaultdict(list)
    for path in sorted(folder.glob("offline-run-*/run-*.wandb")):
        for record in _whole_wandb_file(path):
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            elif record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    if not key.startswith("_"):
                        series[key].append((record.history.step.num, float(item.value_json)))
    return runs, dict(series)


def read_times(run_folder: Path, settings: TrackerConfig, run_id: str) -> dict[int, float]:
    """Step -> time of day of its training loss, in seconds since the epoch."""
    key = "train_loss_nats"
    match settings:
        case TensorBoardConfig():
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
            return {event.step: event.wall_time for event in events.Scalars(key)}
        case MLflowConfig():
            from mlflow import MlflowClient

            uri = f"sqlite:///{run_folder.parent / 'mlflow.db'}"
            run, _ = read_mlflow(uri, run_id)
            history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
            return {metric.step: metric.timestamp / 1000 for metric in history}
    times = {}
    for path in (run_folder / "wandb").glob("offline-run-*/run-*.wandb"):
        for record in _whole_wandb_file(path):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if key in items:
                times[record.history.step.num] = float(items["_timestamp"])
    return times


def _whole_wandb_file(path: Path, timeout_s: float = 30) -> list[Any]:
    """All records. W&B's own process may still be writing when `finish` has returned: its last record is the exit."""
    from wandb.proto.wandb_internal_pb2 import Record

    until = time.monotonic() + timeout_s
    while True:
        records = [Record.FromString(data) for data in _wandb_records(path.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < until, f"{path}: no exit in {len(records)} records"
        time.sleep(0.1)


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format after a header of 7 bytes. A record may go over several chunks,
    none of them over the end of a block; each has checksum (4 bytes), length (2), kind (1 whole, 2 first, 3 middle,
    4 last)."""
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place < len(data):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
