"""Detects by its first bytes that a file is not what its name says, and says in one sentence what to do about it."""

import json
import re
from pathlib import Path
from typing import Any

from workers.data.files import COMPRESSIONS, TABLE_LAYOUTS
from workers.data.framing import MAX_ROW_BYTES

HEAD_BYTES = 512
_CONVERT = "write its rows as .jsonl or .parquet"
_UNPACK = "unpack it and name the files inside"
# (first bytes, what they mean, the suffix for it or what to do)
_BEGINNINGS: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"\x1f\x8b", "gzip", ".gz"),
    ((b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"), "Zstandard", ".zst"),
    (b"PAR1", "Parquet", ".parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    ((b"ARROW1", b"\xff\xff\xff\xff"), "Arrow", ".arrow"),
    (b"FEA1", "Feather of version 1", "write it again with pyarrow.feather.write_feather, which writes version 2"),
    (b"\xfd7zXZ\0", "xz", "unpack it with `xz -d`, or compress it with gzip or zstd"),
    (b"BZh", "bzip2", "unpack it with `bunzip2`, or compress it with gzip or zstd"),
    (b"\x04\x22\x4d\x18", "LZ4", "unpack it with `lz4 -d`, or compress it with gzip or zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"SQLite format 3\0", "an SQLite database", _CONVERT),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as CSV"),
    (b"%PDF", "a PDF", "write its text as rows of .jsonl"),
    (b"\x89HDF", "HDF5", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"Obj\x01", "Avro", _CONVERT),
    (b"ORC", "ORC", _CONVERT),
    ((b"\x80\x04\x95", b"\x80\x05\x95"), "a Python pickle, which is never loaded", _CONVERT),
    ((b"\x89PNG", b"\xff\xd8\xff"), "an image", "give a file of rows"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data", "fetch the data with `git lfs pull`"),
)
_MARKUP = re.compile(rb"(<!doctype html|<html|<head|<body)|(<\?xml|<[A-Za-z!])", re.IGNORECASE)
# Keys under which a file that is one object may hold its rows.
_HOLDERS = ("data", "rows", "train", "examples", "instances", "items", "records")
_OPEN_HOLDER = re.compile(rb'^[ \t{]*"(' + "|".join(_HOLDERS).encode() + rb')"\s*:\s*\[\s*$', re.MULTILINE)
_SPACE = b" \t\r\n"


def read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def foreign_file(path: Path, head: bytes, layout: str, compression: str) -> str | None:
    """Why a file cannot be read as its name says, by its first bytes on disk; None if it may be."""
    expected = {".gz": "gzip", ".zst": "Zstandard", ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}
    wanted = expected.get(compression or layout)
    found = identify(head)
    if found is None:
        if wanted is None or not head or not _is_text(head):
            return None
        suffix = {b"[": ".json", b"{": ".jsonl"}.get(head.lstrip(_SPACE)[:1], ".csv")
        plain = path.name[: -len(compression)] if compression else f"{path.stem}{suffix}"
        return f"this is text, not {wanted}: name it {plain}"
    what, advice = found
    return None if what == wanted else f"this is {what}: {_name_it(path, advice, layout, compression)}"


def identify(head: bytes) -> tuple[str, str] | None:
    """(what it is, the suffix for it or what to do), if the first bytes show it; not for plain text and JSON."""
    for beginning, what, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return what, advice
    if head.startswith(b"PK\x03\x04"):
        if b"[Content_Types].xml" in head or b"xl/" in head or b"docProps/" in head:
            return "an Excel or Word file", "save the sheet as CSV"
        return "a zip archive", _UNPACK
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if markup := _MARKUP.match(head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)):
        page = "an HTML page, perhaps an error page saved in place of the data", "download the data again"
        return page if markup[1] else ("XML or HTML", _CONVERT)
    return None


def foreign_text(path: Path, head: bytes, is_whole: bool, layout: str) -> str | None:
    """The same for the unpacked text of a file, given at least its first two lines or all of it."""
    if found := identify(head[:HEAD_BYTES]):
        what, advice = found
        return f"inside, this is {what}: {_UNPACK if advice.startswith('.') else advice}"
    if encoding := _wide_encoding(head):
        return f"this is {encoding} without a byte order mark: save it as UTF-8"
    lines = [line for line in head.lstrip(_SPACE).split(b"\n", 12)[:12] if line.strip(_SPACE)]
    if layout in (".csv", ".tsv"):
        return _json_in_csv(path, lines)
    if not lines:
        return None
    if lines[0].startswith(b"["):
        return _array(path, lines, is_whole) if layout != ".json" else None
    if lines[0].startswith(b"{"):
        return _object(lines, head, is_whole)
    if lines[0][:1] not in b'"-0123456789tfnNI' and not any(line.startswith(b"{") for line in lines):
        separators = [mark for mark in (b",", b"\t", b";") if lines[0].count(mark) and len(lines) > 1]
        if separators and all(line.count(separators[0]) for line in lines[:2]):
            suffix = ".tsv" if separators[0] == b"\t" else ".csv"
            return f"this is not JSON; if it is a table of text, name it {_renamed(path, suffix)}"
    return None


def _array(path: Path, lines: list[bytes], is_whole: bool) -> str | None:
    if (len(lines) > 1 or not is_whole) and isinstance(_parsed(lines[0]), list):
        return None  # rows that are lists: each is refused separately
    return f"this is one JSON array, not one row per line: name it {_renamed(path, '.json')}"


def _object(lines: list[bytes], head: bytes, is_whole: bool) -> str | None:
    """One object that holds all rows, or objects that span several lines."""
    if is_whole and len(head) <= MAX_ROW_BYTES and isinstance(value := _parsed(head), dict):
        if reason := _holds_rows(value):
            return reason
        return None if len(lines) == 1 else "this is one JSON object over several lines: write one row per line"
    first, second = lines[0].rstrip(_SPACE), (lines[1] if len(lines) > 1 else b"").lstrip(_SPACE)
    if len(lines) == 1 and len(first) > MAX_ROW_BYTES:
        return f"this is one JSON object of more than {MAX_ROW_BYTES // 2**20} MiB: write one row per line"
    if not (second and (first.endswith((b"{", b"[")) or (first.endswith((b",", b":")) and second.startswith(b'"')))):
        return None
    if isinstance(_parsed(lines[0]), dict):
        return None
    if holder := _OPEN_HOLDER.search(b"\n".join(lines)):
        return _under(holder[1].decode())
    return "these are JSON objects over several lines: write one row per line, e.g. with `jq -c .`"


def _holds_rows(value: dict[str, Any]) -> str | None:
    lists = [name for name, inner in value.items() if isinstance(inner, list)]
    if value and (
        all(isinstance(inner, dict) and "0" in inner for inner in value.values())
        or (len(lists) == len(value) and all(value[name] and not isinstance(value[name][0], dict) for name in lists))
    ):
        return (
            "this is one JSON object of columns: write one row per line, e.g. with pandas' "
            "to_json(orient='records', lines=True)"
        )
    rows = [name for name in lists if name in _HOLDERS]
    if len(rows) == 1 and all(isinstance(item, dict) for item in value[rows[0]]):
        return _under(rows[0])
    return None


def _under(key: str) -> str:
    return f"this is one JSON object with its rows under `{key}`: write that list alone, e.g. with `jq .{key}`"


def _json_in_csv(path: Path, lines: list[bytes]) -> str | None:
    if lines and (lines[0].startswith((b'{"', b"[{")) or lines[0].strip(_SPACE) in (b"[", b"{")):
        return f"this is JSON: name it {_renamed(path, '.json' if lines[0].startswith(b'[') else '.jsonl')}"
    return None


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the positions of zero bytes in the first characters."""
    sample = head[:64]
    if len(sample) < 8 or 0 not in sample:
        return None
    zeros = [sample[start::4].count(0) * 8 >= len(sample) for start in range(4)]
    match zeros:
        case [False, True, False, True] | [True, False, True, False]:
            return "UTF-16"
        case [False, True, True, True] | [True, True, True, False]:
            return "UTF-32"
    return None


def _is_text(head: bytes) -> bool:
    """Whether it can be UTF-8 (a character may be cut off at the end) without control characters."""
    if any(byte < 9 for byte in head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3
    return True


def _name_it(path: Path, advice: str, layout: str, compression: str) -> str:
    if not advice.startswith("."):
        return advice
    if advice in COMPRESSIONS:
        if layout in TABLE_LAYOUTS:
            return "unpack it"
        return f"name it {path.name.removesuffix(path.suffix) if compression else path.name}{advice}"
    return f"name it {_renamed(path, advice)}"


def _renamed(path: Path, suffix: str) -> str:
    compression = path.suffix if path.suffix.lower() in COMPRESSIONS else ""
    stem = Path(path.name.removesuffix(compression)).stem
    return f"{stem}{suffix}{'' if suffix in TABLE_LAYOUTS else compression}"
