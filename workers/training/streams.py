"""Streamed domains while a run trains: every part is there, on all ranks, before the first step that draws from it.

Rank 0 has the parts made, a few ahead of those in use; the other ranks learn from it that one is there. What a step
draws does not depend on when that was. A step whose part is not there waits for it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist

from workers.data.batches import BatchLoader
from workers.data.parts import next_position, part_folder
from workers.data.report import Report
from workers.data.store import TokenStore
from workers.engine.collectives import on_rank_zero
from workers.events import log_event
from workers.storage.mirror import fetch_folder
from workers.training.failures import StreamError
from workers.training.parts_ahead import PartsAhead, PartsJob
from workers.training.plan import StreamedRows, TrainingPlan
from workers.training.progress import ProgressMeter

_NUM_AHEAD = 2  # parts that are made beyond the newest one in use
_LOOK_SECONDS = 10.0
"""Of waiting, after which the other ranks hear that it goes on, so that no collective times out."""
_SOON_SECONDS = 1.0
"""Of waiting that is not worth a word."""


@dataclass(frozen=True)
class _Stream:
    name: str
    rows: StreamedRows
    store: TokenStore
    """The first part."""


class Streams:
    """The streamed domains of a run; `reach` is a collective.

    Args:
        stores: the training store of each trained domain, in the order of the loader.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        stores: dict[str, TokenStore],
        loader: BatchLoader,
        meter: ProgressMeter,
        num_steps_done: int,
    ) -> None:
        self._plan = plan
        self._loader = loader
        self._meter = meter
        self._num_steps_done = num_steps_done
        self._streams = {
            domain: _Stream(name, rows, store)
            for domain, (name, store) in enumerate(stores.items())
            if (rows := plan.domains[name].stream) and next_position(store.manifest)
        }
        self.row_counts: dict[str, int | None] = {name: store.num_rows for name, store in stores.items()}
        """Sequences in one pass over each domain; None for a stream until its last part is known."""
        self.row_counts |= dict.fromkeys(stream.name for stream in self._streams.values())
        self._num_rows = {domain: stream.store.num_rows for domain, stream in self._streams.items()}
        self._makers: dict[int, PartsAhead] = {}
        if self._streams and dist.get_rank() == 0:
            self._makers = {domain: self._start(stream) for domain, stream in self._streams.items()}

    def reach(self, step: int) -> None:
        """Have all rows of a step, waiting for them if need be.

        Raises:
            StreamError: on all ranks: some of them cannot be had.
        """
        while self._streams and (domain := self._loader.find_lacking(step)) is not None:
            self._add_part(domain, step)

    def close(self) -> None:
        for maker in self._makers.values():
            maker.close()

    def _start(self, stream: _Stream) -> PartsAhead:
        maker = PartsAhead(PartsJob(rows=stream.rows, model=self._plan.model, cache_dir=_cache_dir(stream)))
        maker.want(1 + _NUM_AHEAD)
        return maker

    def _add_part(self, domain: int, step: int) -> None:
        stream, number = self._streams[domain], self._loader.num_parts(domain)
        self._wait(domain, number, step)
        folder = part_folder(_cache_dir(stream), stream.rows.plan.key, number)
        fetch_folder(folder)
        store = TokenStore.open(folder / "train")
        is_last = next_position(store.manifest) is None
        self._loader.add_part(domain, store, is_last)
        self._num_rows[domain] += store.num_rows
        if is_last:
            self.row_counts[stream.name] = self._num_rows[domain]
        if dist.get_rank() == 0 and step > self._num_steps_done + 1:  # before that it was told already
            self._tell(stream.name, store, number, step, is_last)

    def _wait(self, domain: int, number: int, step: int) -> None:
        """Wait until a part is made; rank 0 knows."""
        name, is_told = self._streams[domain].name, False
        while True:
            self._meter.enter(f"waiting for rows of {name}", step)
            seconds = _LOOK_SECONDS if is_told else _SOON_SECONDS
            is_there, failure = on_rank_zero(partial(self._ask, domain, number, seconds))
            if failure is not None:
                raise StreamError(
                    f"domain {name!r}, which is streamed: its rows for step {step:,} cannot be prepared: {failure}"
                )
            if is_there:
                return
            if not is_told and dist.get_rank() == 0:
                what = f"waiting for rows {self._num_rows[domain]:,} and following of domain {name!r}"
                log_event(self._plan.folder, step, "streaming", f"{what}: part {number} is still being prepared")
            is_told = True

    def _ask(self, domain: int, number: int, seconds: float) -> tuple[bool, str | None]:
        """(whether the part is there within that time, why it will never be); rank 0 only."""
        maker = self._makers[domain]
        maker.want(number + 1 + _NUM_AHEAD)
        try:
            return maker.wait(number + 1, seconds), None
        except ValueError as error:
            return False, str(error)

    def _tell(self, name: str, store: TokenStore, number: int, step: int, is_last: bool) -> None:
        """Log what happened to the rows of a part, and that it was the last one."""
        report = Report(**store.manifest["report"])
        left_out = {
            "too long": report.num_too_long,
            "left out by `exclude`": report.num_excluded,
            **{f"with {word} dropped by the template": num for word, num in report.dropped.items()},
        }
        listed = [f"{num:,} {what}" for what, num in left_out.items() if num]
        if report.num_bad_rows:
            first = report.bad_row_cases[0]
            what = f"{report.num_bad_rows:,} cannot be used, first {first.file}:{first.line}: {first.reason}"
            listed.insert(0, what)
        if listed:
            message = f"{name}: part {number}, {report.num_rows:,} rows: {'; '.join(listed)}"
            log_event(self._plan.folder, step, "bad_rows" if report.num_bad_rows else "streaming", message)
        if is_last:
            message = f"{name}: its last row is prepared; an epoch has {self.row_counts[name]:,} sequences"
            log_event(self._plan.folder, step, "streaming", message)


def _cache_dir(stream: _Stream) -> Path:
    return stream.store.folder.parent.parent
