"""Arrays too long for memory, in files: in sorted runs while they are put in order, and as .npy at the end.

A run is as much as fits in memory, sorted by a key whose range is divided into parts; a part is read from all runs.
Nothing is mapped: mapped files count as memory of a process until it lets them go.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Runs:
    """The sorted runs of one array, in a temporary file in `folder`. Memory is 8 bytes for each part of each run."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  `close` closes it
        self._num_values = 0
        self._bounds: list[NDArray[np.int64]] = []

    def append(self, run: NDArray[Any], bounds: NDArray[np.integer[Any]]) -> None:
        """Add a run, of which part p is `run[bounds[p] : bounds[p + 1]]`."""
        run.astype(self._dtype, copy=False).tofile(self._file)
        self._bounds.append(self._num_values + bounds.astype(np.int64))
        self._num_values += len(run)

    def read(self, part: int) -> NDArray[Any]:
        """The part of every run, in the order in which they were added."""
        size = self._dtype.itemsize
        spans = [(int(bounds[part]) * size, int(bounds[part + 1]) * size) for bounds in self._bounds]
        pieces = [os.pread(self._file.fileno(), end - start, start) for start, end in spans if end > start]
        return np.frombuffer(b"".join(pieces), dtype=self._dtype)

    def close(self) -> None:
        """The file is gone then."""
        self._file.close()


class GrowingArray:
    """A .npy file to which rows of `shape` are appended; complete once it is closed."""

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._file = path.open("wb")
        self._write_header()
        self._start = self._file.tell()
        self.num_rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        rows.astype(self._dtype, copy=False).tofile(self._file)
        self.num_rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header(self.num_rows)
        assert self._file.tell() == self._start  # NumPy leaves room for any number of rows
        self._file.close()

    def _write_header(self, num_rows: int = 0) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (num_rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
