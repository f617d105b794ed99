"""Where a domain's rows come from: files or a hub data set, each divided into shards that tasks read independently.

`plan_sources` inspects each file once (size, hash, layout of the first rows); `read_examples` streams one shard.
Rows are only data: no row is interpreted as a path, an address or code.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from workers.config.data import DomainConfig, Exclusion, HubConfig, TrainOn
from workers.data.files import TABLE_LAYOUTS, BadRow, Rows, Shard, split_suffix
from workers.data.formats import read_row
from workers.data.formats.detection import check_fields, detect_layout
from workers.data.formats.example import Example, ExcludedRow, is_excluded
from workers.data.formats.refusals import find_refusal, harmless_names
from workers.data.formats.values import RowError
from workers.data.hub_rows import digest_stream, load_split, name_split, read_split, read_stream, slice_rows
from workers.data.locations import find_files
from workers.data.reading import ZSTD_WINDOW_MIB, Blocks, read_rows
from workers.data.text_rows import LIST_COLUMNS
from workers.fingerprint import fingerprint
from workers.settings import NewSwitch, Settings, StoragePath
from workers.storage.addresses import shown
from workers.storage.data import version_of

_ROWS_TO_DETECT = 100
_SHARD_BYTES = 16 * 2**20  # of text
_SHARD_ROWS = 16_384
_TEXT_BYTES_PER_PACKED_BYTE = 4
# Every task reads (but does not tokenise) the whole of a compressed file, so more shards do not pay off.
_MAX_SHARDS = 32


class Source(Settings):
    """One file, or one split of a hub data set, and how to read it."""

    path: StoragePath | None = None
    hub: HubConfig | None = None
    split: str = ""
    """Split of the hub data set; empty for a file."""
    format: str
    """Layout of the rows; never `auto`."""
    fields: dict[str, str]
    """Field names of the format -> field names of the file."""
    harmless: list[str] | None = None
    """With a detected format, fields that a row may have without a second look; None if the format was named."""
    train_on: TrainOn = "all"
    """Which answers of a conversation are trained on."""
    text_has_template: bool = False
    """Whether documents already include their chat template."""
    exclude: list[Exclusion] = Field(default_factory=list)
    digest: str
    """Hash of the content; of name and version if it is streamed."""
    size: int
    """Bytes of the file, or rows of the hub data set (0 if it is streamed)."""
    num_shards: int
    """Parts in which it is read: a function of the size alone."""
    zstd_window_mib: int = ZSTD_WINDOW_MIB
    """Longest Zstandard window that the file may need."""
    is_streamed: NewSwitch = False
    """Whether it is read in order, while training goes on, and was not looked through before."""

    @property
    def name(self) -> str:
        if self.hub is not None:
            return name_split(self.hub, self.split)
        assert self.path is not None
        return shown(self.path)


def plan_sources(
    domain: str, config: DomainConfig, split: str, train_on: TrainOn = "all", zstd_window_mib: int = ZSTD_WINDOW_MIB
) -> list[Source]:
    """The sources of a domain's `train` or `eval` split; empty if it has no separate evaluation source. ValueError if a
    path names no readable file, or the format of a file cannot be detected."""
    try:
        check_fields(config.format, config.fields)
        if config.hub is not None:
            hub_split = config.hub.split if split == "train" else config.hub.eval_split
            plan_hub = _plan_hub_stream if config.streaming else _plan_hub
            sources = [plan_hub(config, config.hub, hub_split)] if hub_split else []
        else:
            paths = config.train if split == "train" else config.eval
            files = [file for path in paths for file in find_files(path).files]
            is_streamed = config.streaming and split == "train"
            sources = [_plan_file(config, file, zstd_window_mib, is_streamed) for file in files]
        exclude = [exclusion for exclusion in config.exclude if split == "train" or exclusion.eval]
        return [source.replaced(exclude=exclude, **_targets(config, source, train_on)) for source in sources]
    except (ValueError, OSError) as error:
        raise ValueError(f"domain {domain!r}: {error}") from error


def read_examples(
    source: Source, shard: Shard, blocks: Blocks | None = None
) -> Iterator[Example | ExcludedRow | BadRow]:
    """The examples of a shard, and a marker for each row that is not one. `blocks` as `read_rows` takes them."""
    if source.path is None:
        rows = _read_hub(source, shard)
    else:
        rows = read_rows(source.path, shard, source.zstd_window_mib, _list_columns(source.fields), blocks)
    harmless = None if source.harmless is None else set(source.harmless)
    by_field = [exclusion for exclusion in source.exclude if exclusion.field is not None]
    by_text = [exclusion for exclusion in source.exclude if exclusion.field is None]
    read = partial(
        read_row,
        format_name=source.format,
        fields=source.fields,
        train_on=source.train_on,
        has_template=source.text_has_template,
        is_columnar=source.path is None or split_suffix(source.path)[0] in TABLE_LAYOUTS,
    )
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        line, value = row
        try:
            if by_field and isinstance(value, dict) and is_excluded(value, None, by_field):
                yield ExcludedRow(line)
                continue
            # It may have fields that the first rows, which determined the layout, did not have.
            is_new = harmless is not None and isinstance(value, dict) and not value.keys() <= harmless
            if is_new and (refusal := find_refusal([value], source.fields)):
                raise RowError(refusal)
            example = read(line, value)
            yield ExcludedRow(line) if by_text and is_excluded(value, example, by_text) else example
        except RowError as error:
            yield BadRow(source.name, line, str(error))


def _targets(config: DomainConfig, source: Source, train_on: TrainOn) -> dict[str, Any]:
    """The domain's settings of what is trained on, as they apply to the layout of its rows."""
    if source.format == "text":
        if config.train_on is not None:
            raise ValueError(f"{source.name}: train_on is for conversations, and its rows are documents; remove it")
        return {"text_has_template": config.text_has_template}
    if config.text_has_template:
        raise ValueError(
            f"{source.name}: text_has_template is for rows of format text, and these are of format {source.format}; "
            "remove it"
        )
    return {"train_on": config.train_on or train_on}


def _plan_file(config: DomainConfig, path: Path, zstd_window_mib: int, is_streamed: bool) -> Source:
    layout, compression = split_suffix(path)
    size = path.stat().st_size
    is_packed = bool(compression) or layout in TABLE_LAYOUTS
    text_bytes = size * _TEXT_BYTES_PER_PACKED_BYTE if is_packed else size
    # A longer window may let more content through.
    window = f"-{zstd_window_mib}" if compression == ".zst" and zstd_window_mib != ZSTD_WINDOW_MIB else ""
    rows = read_rows(path, Shard(), zstd_window_mib, _list_columns(config.fields))
    return Source(
        path=path.absolute(),  # a link stays a link: its target's name may not show its type
        **_resolve_format(config, str(path), rows),
        digest=(digest_version(path) if is_streamed else hash_file(path)) + window,
        size=size,
        num_shards=1 if is_streamed else _count_shards(text_bytes, _SHARD_BYTES),
        zstd_window_mib=zstd_window_mib,
        is_streamed=is_streamed,
    )


def _list_columns(fields: Mapping[str, str]) -> frozenset[str]:
    return frozenset(fields.get(name, name) for name in LIST_COLUMNS)


def _plan_hub(config: DomainConfig, hub: HubConfig, split: str) -> Source:
    rows = load_split(hub, split)
    head = slice_rows(rows, range(min(_ROWS_TO_DETECT, len(rows))))
    return Source(
        hub=hub,
        split=split,
        **_resolve_format(config, name_split(hub, split), head),
        digest=rows._fingerprint,
        size=len(rows),
        num_shards=_count_shards(len(rows), _SHARD_ROWS),
    )


def _plan_hub_stream(config: DomainConfig, hub: HubConfig, split: str) -> Source:
    return Source(
        hub=hub,
        split=split,
        **_resolve_format(config, name_split(hub, split), read_stream(hub, split)),
        digest=digest_stream(hub, split),
        size=0,
        num_shards=1,
        is_streamed=True,
    )


def _resolve_format(config: DomainConfig, name: str, rows: Rows) -> dict[str, Any]:
    """`format`, `fields` and `harmless` of a Source: as configured, or as detected from the first rows."""
    if config.format != "auto":
        return {"format": config.format, "fields": config.fields}
    first_rows = islice((row[1] for row in rows if not isinstance(row, BadRow)), _ROWS_TO_DETECT)
    head = [row for row in first_rows if isinstance(row, dict)]
    if not head:
        return {"format": "messages", "fields": config.fields}  # every row will be a bad row
    if refusal := find_refusal(head, config.fields):
        raise ValueError(f"{name}: {refusal}")
    if layout := detect_layout(head, config.fields):
        return {**layout._asdict(), "harmless": harmless_names(head)}
    keys = sorted({str(key)[:40] for row in head for key in row})[:20]
    raise ValueError(
        f"{name}: cannot detect the format; the first {len(head)} rows have the fields {', '.join(keys)}. Name it with "
        "`format` (messages, sharegpt, alpaca, prompt_completion, text) and map its fields with `fields`, "
        "e.g. fields: {prompt: question, completion: answer}"
    )


def _count_shards(amount: int, per_shard: int) -> int:
    return min(max(1, math.ceil(amount / per_shard)), _MAX_SHARDS)


def digest_version(path: Path) -> str:
    """Hash of a file's name, size and version, which takes no time however long the file is."""
    return fingerprint([shown(path.absolute()), path.stat().st_size, version_of(path)], num_bytes=16)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_hub(source: Source, shard: Shard) -> Rows:
    assert source.hub is not None
    if source.is_streamed:
        return read_stream(source.hub, source.split, shard.after)
    return read_split(source.hub, source.split, shard)
