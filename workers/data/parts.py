"""A streamed domain: a chain of parts, each a token store of the next rows of its sources, packed by itself.

    part 0    <key>/train and <key>/eval    prepared before training, as the stores of any domain are
    part n    <key>-n/train                 prepared while training goes on, by whoever needs it and does not find it

The manifest of a part says where in the sources the next one begins, so its content follows from the sources alone,
however often the reading was interrupted. Rows whose prompts are set aside for evaluation are in no part: those among
the rows of part 0 are measured, all others are left out.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.data import DataConfig
from workers.data.files import LostRows, Shard
from workers.data.preparing import DomainPlan, check_sides, pack_side
from workers.data.report import Report, check_bad_rows
from workers.data.sources import digest_version, read_examples
from workers.data.store import TokenStore, publish
from workers.data.tokenization import Row, ShardTask, TokenShard, tokenize_rows, tokenize_shard
from workers.settings import Settings
from workers.storage.data import bring
from workers.storage.mirror import fetch_folder, is_published, publish_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Position(Settings):
    """A place in the sources of a domain: the first row of a source behind a line."""

    source: int = 0
    line: int = 0


class PartReader:
    """The rows of a domain's sources, in order from a position on.

    A part ends between two lines, so several rows of one line (of a JSON array) are in the same part.

    Args:
        tasks: one for each source.
    """

    def __init__(self, tasks: Sequence[ShardTask], at: Position) -> None:
        self.at: Position | None = at
        self._tasks = tasks
        self._rows: Iterator[Row] | None = None
        self._next: list[Row] = []  # at most one row, which was read and not taken

    def take(self, num_rows: int) -> Iterator[tuple[ShardTask, Iterator[Row]]]:
        """The next rows by source, about this many; the rows of a source have to be read before the next is asked for.
        ValueError, with file and line, if a source has changed or cannot be read any further."""
        left = num_rows
        while self.at is not None and left > 0:
            task = self._tasks[self.at.source]
            self._check(task)
            taken = _Counted(self._lines(left))
            yield task, taken
            left -= taken.num

    def _check(self, task: ShardTask) -> None:
        path = task.source.path
        if path is None:
            return
        try:
            bring(path)
            is_same = task.source.digest.startswith(digest_version(path))
        except OSError as error:
            raise ValueError(f"{task.source.name}: {error.strerror}; restore the file") from error
        if not is_same:
            raise ValueError(
                f"{task.source.name}: has changed since the run was prepared, and a streamed file has to stay; "
                "start the command again to read it as it is now"
            )

    def _lines(self, num_rows: int) -> Iterator[Row]:
        """Rows of the current source, until there are this many and the line ends."""
        assert self.at is not None
        number, num_taken = self.at.source, 0
        if self._rows is None:
            self._rows = read_examples(self._tasks[number].source, Shard(after=self.at.line))
        while (row := self._next.pop() if self._next else next(self._rows, None)) is not None:
            if isinstance(row, LostRows):
                raise ValueError(f"{row.file}:{row.line}: {row.reason}")
            if num_taken >= num_rows and row.line > self.at.line:
                self._next.append(row)
                return
            num_taken += 1
            self.at = Position(source=number, line=row.line)
            yield row
        self._rows = None
        self.at = Position(source=number + 1) if number + 1 < len(self._tasks) else None


class _Counted:
    """An iterator that knows how many values it gave."""

    def __init__(self, values: Iterator[Row]) -> None:
        self._values = values
        self.num = 0

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        row = next(self._values)
        self.num += 1
        return row


class PartMaker:
    """Makes the parts of a domain in order, those that are not there.

    Args:
        cache_dir: where the stores of domains are.
    """

    def __init__(
        self, plan: DomainPlan, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", cache_dir: Path
    ) -> None:
        self._plan = plan
        self._data = data
        self._tokenizer = tokenizer
        self._cache_dir = cache_dir
        self._tasks = [task for task in plan.tasks if task.side == "train"]
        self._reader = PartReader(self._tasks, Position())
        self.report = Report()
        """What happened to the rows of all parts so far."""
        self._num_made = 0
        self.building: Path | None = None
        """The folder in which a part is being made."""

    def make_next(self) -> bool:
        """Make the next part, or find it; whether another one follows.

        Raises:
            ValueError: for the user: a source cannot be read, or more rows are bad than `data` allows.
            StorageError: the storage is gone for too long.
        """
        folder = part_folder(self._cache_dir, self._plan.key, self._num_made)
        fetch_folder(folder)
        if not folder.exists():
            self._build(folder)
        if not is_published(folder):
            publish_folder(folder)
        self._num_made += 1
        manifest = TokenStore.open(folder / ("train" if self._plan.is_trained else "eval")).manifest
        self.report = Report.merged([self.report, Report(**manifest["report"])])
        check_bad_rows(self._plan.domain, self._data, self.report)
        following = next_position(manifest)
        if following is not None and following != self._reader.at:  # found, not made
            self._reader = PartReader(self._tasks, following)
        return following is not None and self._plan.is_trained

    def _build(self, folder: Path) -> None:
        self.building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self._cache_dir))
        try:
            tasks, shards = self._tokenize(self.building)
            report = Report.merged([shard.report for shard in shards])
            check_bad_rows(self._plan.domain, self._data, Report.merged([self.report, report]))
            plan = self._plan.replaced(key=folder.name, tasks=tasks)
            if self._num_made == 0:
                check_sides(plan, shards, self._data)
            stores = self.building / "stores"
            stores.mkdir()
            at = self._reader.at
            more = {"next": None if at is None else at.model_dump()}
            for side in plan.sides if self._num_made == 0 else ("train",):
                pack_side(plan, side, shards, self._data, self._tokenizer.pad_token_id, stores, more)
            publish(stores, folder)
        finally:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building = None

    def _tokenize(self, building: Path) -> tuple[list[ShardTask], list[TokenShard]]:
        """The next rows, and with part 0 those of the evaluation sources."""
        assert self._plan.rows_per_part is not None
        done = [
            (task, tokenize_rows(task, rows, self._data, self._tokenizer, building))
            for task, rows in self._reader.take(self._plan.rows_per_part)
        ]
        if self._num_made == 0:
            of_eval = [task for task in self._plan.tasks if task.side == "eval"]
            done += [(task, tokenize_shard(task, self._data, self._tokenizer, building)) for task in of_eval]
        return [task for task, _ in done], [shard for _, shard in done]


def part_folder(cache_dir: Path, key: str, number: int) -> Path:
    return cache_dir / (f"{key}-{number}" if number else key)


def next_position(manifest: dict[str, object]) -> Position | None:
    """Where the part behind a training store begins; None if there is none."""
    following = manifest.get("next")
    return None if following is None else Position.model_validate(following)
