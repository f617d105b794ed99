"""Where rows begin and end in a stream of bytes: lines, or the elements of a JSON array.

Both yield (line number, bytes of the row), never hold more than MAX_ROW_BYTES of a row, and yield None instead of a
longer one. Blank rows are skipped.
"""

import re
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

MAX_ROW_BYTES = 8 * 2**20

Frame = tuple[int, bytes | None]

_SPACE = b" \t\r\n"
# Strings match whole; a lone quote opens one whose end has not been read yet.
_ARRAY_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)


class DamagedFile(Exception):
    """The file cannot be read from `line` on, for this reason."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason, line)
        self.reason = reason
        self.line = line


def split_lines(chunks: Iterator[bytes], line: int = 1, keeps_all: bool = False) -> Iterator[Frame]:
    """Lines that end with \\n, \\r\\n or \\r, in any mixture; the first has the number `line`.

    With `keeps_all`, blank lines too, and every line with its ending and surrounding spaces.
    """
    rest, is_too_long = b"", False
    try:
        for chunk in chunks:
            rest += chunk
            pieces = rest.splitlines(keepends=True)
            # A \r at the end may be half of a \r\n.
            rest = b"" if not pieces or pieces[-1].endswith(b"\n") else pieces.pop()
            for piece in pieces:
                if is_too_long or len(piece) > MAX_ROW_BYTES:
                    yield line, None
                elif text := piece if keeps_all else piece.strip(_SPACE):
                    yield line, text
                is_too_long = False
                line += 1
            if len(rest) > MAX_ROW_BYTES:
                is_too_long, rest = True, rest[-1:]
    except DamagedFile as error:
        raise DamagedFile(error.reason, line) from None
    if is_too_long:
        yield line, None
    elif text := rest if keeps_all else rest.strip(_SPACE):
        yield line, text


def find_blocks(chunks: Iterator[bytes], lines_per_block: int) -> NDArray[np.int64]:
    """Where each block of this many lines begins, as `split_lines` counts them, and where the last one ends; bytes."""
    starts = [np.zeros(1, dtype=np.int64)]
    num_lines = num_bytes = 0
    is_open = False  # whether the chunk before ended with a \r, which may be half of a \r\n
    for chunk in chunks:
        text = np.frombuffer(chunk, dtype=np.uint8)
        is_end = text == ord("\n")
        after_open = np.full(int(is_open and not is_end[0]), num_bytes)
        is_open = False
        if b"\r" in chunk:
            is_return = text == ord("\r")
            is_return[:-1] &= ~is_end[1:]
            is_open, is_return[-1] = bool(is_return[-1]), False
            is_end |= is_return
        begins = np.concatenate([after_open, np.flatnonzero(is_end) + num_bytes + 1])
        starts.append(begins[lines_per_block - 1 - num_lines % lines_per_block :: lines_per_block])
        num_lines += len(begins)
        num_bytes += len(chunk)
    blocks = np.concatenate(starts)
    return blocks if blocks[-1] == num_bytes else np.append(blocks, num_bytes)


def split_json(chunks: Iterator[bytes]) -> Iterator[Frame]:
    """The elements of a JSON array, or lines if the file does not start with a bracket."""
    line, head = 1, b""
    try:
        while not head.strip(_SPACE):
            line += head.count(b"\n")
            head = next(chunks)
    except StopIteration:
        return
    except DamagedFile as error:
        raise DamagedFile(error.reason, line) from None
    if head.lstrip(_SPACE).startswith(b"["):
        yield from _ArraySplitter(line).split(chain([head], chunks))
    else:
        yield from split_lines(chain([head], chunks), line)


class _ArraySplitter:
    """The elements of one array, found by counting brackets outside strings; whether they are JSON is not checked."""

    def __init__(self, line: int) -> None:
        self.buffer = b""  # from the end of the last complete element
        self.line = line  # of the buffer's first byte
        self.scanned = 0  # bytes of the buffer that have been scanned
        self.depth = 0  # open brackets: 1 between two elements
        self.is_closed = False
        self.long_line: int | None = None  # where the open element starts, once its text has been discarded

    def split(self, chunks: Iterator[bytes]) -> Iterator[Frame]:
        """The frames of these chunks, the first of which contains the array's opening bracket."""
        try:
            for chunk in chunks:
                self.buffer += chunk
                if not self.is_closed:
                    yield from self._take_elements()
                if self.is_closed and self.buffer.strip(_SPACE):
                    raise DamagedFile("text after the closing bracket")
                if len(self.buffer) > MAX_ROW_BYTES:
                    self._let_go()
            if not self.is_closed:
                raise DamagedFile("the array has no closing bracket")
        except DamagedFile as error:
            raise DamagedFile(error.reason, self._text_line(0)) from None

    def _take_elements(self) -> Iterator[Frame]:
        start, scanned = 0, len(self.buffer)
        for token in _ARRAY_TOKEN.finditer(self.buffer, self.scanned):
            if token.end() > token.start() + 1:
                continue  # a whole string
            mark = token.group()
            if mark == b'"':
                scanned = token.start()
                break
            self.depth += (mark in b"{[") - (mark in b"}]")
            self.is_closed = self.depth == 0
            if self.is_closed or (mark == b"," and self.depth == 1):
                text = self.buffer[start : token.start()]
                if self.long_line is not None or text.strip(_SPACE):
                    is_too_long = self.long_line is not None or len(text) > MAX_ROW_BYTES
                    yield self._text_line(start), None if is_too_long else text.strip(_SPACE)
                self.long_line = None
            elif not (mark == b"[" and self.depth == 1):
                continue
            start = token.end()
            if self.is_closed:
                break
        self._drop(start)
        self.scanned = scanned - start

    def _let_go(self) -> None:
        """Discard what has been scanned of an element that is too long."""
        self.long_line = self._text_line(0)
        self._drop(self.scanned)
        self.scanned = 0
        if len(self.buffer) > MAX_ROW_BYTES:  # all of it an open string
            ends_in_escape = (len(self.buffer) - len(self.buffer.rstrip(b"\\"))) % 2
            self._drop(len(self.buffer))
            self.buffer = b'"\\' if ends_in_escape else b'"'

    def _drop(self, num_bytes: int) -> None:
        self.line += self.buffer.count(b"\n", 0, num_bytes)
        self.buffer = self.buffer[num_bytes:]

    def _text_line(self, start: int) -> int:
        """The line on which the text after `start` begins."""
        if self.long_line is not None:
            return self.long_line
        text_start = len(self.buffer) - len(self.buffer[start:].lstrip(_SPACE))
        return self.line + self.buffer.count(b"\n", 0, text_start)
