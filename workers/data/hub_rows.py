"""Rows of a data set on the Hugging Face hub: a split that is loaded whole, or read in order as a stream.

A stream stores nothing on this machine, and nobody knows its length before its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config.data import HubConfig
from workers.data.arrow_rows import read_arrow
from workers.data.files import ROWS_PER_BLOCK, BadRow, LostRows, Rows, Shard, one_line
from workers.fingerprint import fingerprint
from workers.hub import reach_hub

if TYPE_CHECKING:
    import datasets


def name_split(hub: HubConfig, split: str) -> str:
    return f"{hub.path}[{split}]"


def load_split(hub: HubConfig, split: str) -> "datasets.Dataset":
    """The split, prepared on this machine; ValueError if there is no such split, or it cannot be prepared."""
    # Imported here: it takes a second, and most domains are files.
    import datasets

    with _explained(hub, split):
        return datasets.load_dataset(hub.path, hub.name, split=split, revision=hub.revision)


def read_split(hub: HubConfig, split: str, shard: Shard) -> Rows:
    """The shard's rows of a split that is loaded whole."""
    rows = load_split(hub, split)
    if len(rows) == 0 and shard.owns(1):
        yield BadRow(name_split(hub, split), 1, "the split is empty")
    yield from slice_rows(rows, shard.span(len(rows)))


def slice_rows(rows: "datasets.Dataset", span: range) -> Rows:
    # Plain Arrow: the library's row access would open the files that image and audio columns name.
    table = rows.with_format("arrow")
    for start in range(span.start, span.stop, ROWS_PER_BLOCK):
        yield from read_arrow(table[start : min(start + ROWS_PER_BLOCK, span.stop)], start)


def digest_stream(hub: HubConfig, split: str) -> str:
    """Hash of the names and versions of the split's files, which are not read; ValueError as in `load_split`."""
    builder = _builder(hub, split)
    files: Any = builder.config.data_files or {}
    if files and split not in files:
        raise ValueError(f"hub set {hub.path!r} has no split {split!r}; it has {', '.join(map(str, files))}")
    of_split = files.get(split)
    versions = [list(map(str, version)) for version in of_split.origin_metadata] if of_split else []
    names = list(map(str, of_split or []))
    return fingerprint([hub.path, split, builder.config_id, str(builder.hash), names, versions], num_bytes=16)


def read_stream(hub: HubConfig, split: str, after: int = 0) -> Rows:
    """The rows behind the first `after` ones, in the data set's order; LostRows where it cannot be read any further."""
    name, row = name_split(hub, split), after
    try:
        with _explained(hub, split):
            tables = _builder(hub, split).as_streaming_dataset(split=split).skip(after).with_format("arrow")
        for table in tables.iter(batch_size=ROWS_PER_BLOCK):
            yield from read_arrow(table, row)
            row += table.num_rows
    except Exception as error:  # of the network, of every file format, and of the library: without a common class
        yield LostRows(name, row + 1, f"unreadable from here on: {type(error).__name__}: {one_line(error)}")
        return
    if row == 0:
        yield BadRow(name, 1, "the split is empty")


def _builder(hub: HubConfig, split: str) -> Any:
    import datasets

    with _explained(hub, split):
        return datasets.load_dataset_builder(hub.path, hub.name, revision=hub.revision)


@contextmanager
def _explained(hub: HubConfig, split: str) -> Iterator[None]:
    """ValueError that names the split for what the library raises."""
    import datasets

    if not Path(hub.path).expanduser().exists():
        reach_hub("dataset", hub.path, hub.revision)
    try:
        yield
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"hub set {hub.path!r}, split {split!r}: {error}") from error
