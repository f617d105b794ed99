"""What may stand in the place of a file, and what a JSON text may say."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from workers.bounded import (
    MAX_DEPTH,
    UnfitJSONError,
    UnreadableFileError,
    open_regular,
    parse_json,
    read_bytes,
    read_model,
    read_object,
)


class Counted(BaseModel):
    name: str = ""
    steps: int = 0
    loss: float = 0.0


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


NOT_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (os.mkfifo, "is a FIFO, not a file"),
    "socket": (bound_socket, "is a socket, not a file"),
    "folder": (Path.mkdir, "is a folder, not a file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_file_is_named_and_nobody_waits_for_it(kind: str, tmp_path: Path) -> None:
    make, reason = NOT_FILES[kind]
    place = Path(os.path.relpath(tmp_path / kind))  # a socket's name may not be long
    make(place)
    with pytest.raises(UnreadableFileError) as error:
        read_bytes(place)
    assert error.value.reason == reason
    assert str(error.value) == f"{place}: {reason}; restore it, or move it away"


def test_a_fifo_that_takes_the_place_after_the_look_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a")
    (tmp_path / "b").write_text("{}")
    was = (tmp_path / "b").stat()
    with monkeypatch.context() as patch, pytest.raises(UnreadableFileError, match="FIFO"):
        patch.setattr(Path, "stat", lambda self: was)
        open_regular(tmp_path / "a", 10)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"")
    os.truncate(path, 10 << 30)
    with pytest.raises(UnreadableFileError, match=r"has 10,737,418,240 bytes, and at most 8,388,608 are read"):
        read_bytes(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UnreadableFileError, match="grows beyond 4 bytes"):
        read_bytes(Path("/proc/self/status"), 4)  # whose size is said to be 0, as of a file that has just begun


def test_a_missing_file_and_a_circle_of_links_are_errors_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")
    with pytest.raises(OSError, match="symbolic links"):
        read_bytes(tmp_path / "loop")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "nested more than"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} levels"),
        ('{"a": {"b": 18446744073709551616}}', "integer of more than 64 bits at 'b'"),
        ('{"b": -9223372036854775809}', "integer of more than 64 bits at 'b'"),
        ('{"b": [1, Infinity]}', "inf at 'b'"),
        ('{"b": 1e999}', "inf at 'b'"),
        ('{"b": NaN}', "nan at 'b'"),
        ('{"b": "\\ud800"}', "not Unicode at 'b'"),
        ('{"\\ud800": 1}', "not Unicode"),
    ],
)
def test_json_that_no_file_of_ours_has(text: str, fault: str) -> None:
    with pytest.raises(UnfitJSONError, match=fault):
        parse_json(text.encode())


def test_json_that_files_of_ours_have() -> None:
    text = '{"seed": 18446744073709551615, "least": -9223372036854775808, "é": [null, 1e308], "pair": "\\ud83d\\ude00"}'
    assert parse_json(text.encode())["seed"] == 2**64 - 1
    assert str(parse_json(b"[NaN, Infinity, -Infinity]", not_finite=True)) == "[nan, inf, -inf]"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1]", "is a JSON list, not an object"),
        (b"3", "is a JSON number, not an object"),
    ],
)
def test_the_wrong_kind_of_json_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=reason):
        read_object(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"steps": "many"}', r"is not what belongs there \(steps: Input should be a valid integer"),
        ("[]", "is not what belongs there"),
        ('{"steps": "%s"}' % ("9" * 30), "integer of more than 64 bits at 'steps'"),
        ('{"loss": Infinity}', "inf at 'loss'"),
    ],
)
def test_the_wrong_record_is_named(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UnreadableFileError, match=reason):
        read_model(tmp_path / "a.json", Counted)
