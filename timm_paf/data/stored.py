"""Arrays in files: rows are read in place, and a file that changes is noticed."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np

from timm_paf.data.errors import DataChanged, first_line

Progress = Callable[[str, int, int], None]  # what is being done, bytes or images done, total

CHUNK = 1 << 22  # bytes read at a time


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Size and time of modification, which change with the content; hard links and network disks change the others."""
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class StoredArray:
    """An array in a file in row-major order; compressed ones have no methods to read rows.

    Each read opens the file again and compares its stamp, so that copies in threads and processes read independently
    and notice a change. Files are not mapped: pages of a mapped file count as memory of the process, and truncation of
    the file would kill it with a signal instead of an error.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype  # without objects
    stamp: tuple[int, ...]  # of the file when its header was read
    offset: int = 0  # of the first byte
    compressed: bool = False
    key: str = ''  # name in an archive
    axes: str = ''  # such as 'NHWC', set by `with_axes`
    fortran: bool = False  # column-major; `with_axes` gives a row-major view
    crc: tuple[int, int] | None = None  # CRC-32 of the zip member, and of its bytes in front of the data
    origin: str = ''  # start of messages about the content, if this is a copy of another array

    @property
    def where(self) -> str:
        """Start of a message about the content."""
        return self.origin or (f"{self.path}: '{self.key}'" if self.key else f'{self.path}:')

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def with_axes(self, axes: str) -> 'StoredArray':
        """This array with names for its axes, in the order of the file: reversed if that is column-major."""
        step = -1 if self.fortran else 1
        return replace(self, shape=self.shape[::step], axes=axes[::step], fortran=False)

    def check(self) -> None:
        """Raise `DataChanged` if the file is not the one that was opened, or was modified."""
        with self._opened():
            pass

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Read the rows at `indices` ((B,) int64), in this order; raises `DataChanged` if the file changed."""
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        view, length, order = out.reshape(-1).view(np.uint8).data, self.row_bytes, np.argsort(indices, kind='stable')
        offsets = [self.offset + row * length for row in indices[order].tolist()]
        with self._opened() as file:
            if hasattr(os, 'posix_fadvise'):
                # no read-ahead, since the order is random; a cold disk works on all rows of a batch at once
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for offset in offsets:
                    os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
            for place, offset in zip(order.tolist(), offsets, strict=True):
                self._read(file, view[place * length:(place + 1) * length], offset)
        return out

    def range(self, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop`, as `rows` does."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._opened() as file:
            self._read(file, out.reshape(-1).view(np.uint8).data, self.offset + start * self.row_bytes)
        return out

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, about `size` bytes at a time, each chunk with the index of its first row.

        Raises `DataChanged` as `rows` does, and after the last chunk if the CRC-32 is not the one in the archive.
        """
        step = max(size // self.row_bytes, 1)
        expected, crc = self.crc or (None, 0)
        for start in range(0, self.shape[0], step):
            rows = self.range(start, min(start + step, self.shape[0]))
            crc = zlib.crc32(rows.data, crc)
            yield start, rows
        if expected not in (None, crc):
            raise DataChanged(f"{self.path}: '{self.key}' is damaged (its CRC-32 is wrong); get the file again")

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        """The file, with its stamp compared before and after the block."""
        try:
            with open(self.path, 'rb', buffering=0) as file:
                self._compare(file)
                yield file
                self._compare(file)
        except OSError as error:
            raise DataChanged(f'{self.path}: cannot be read any more ({first_line(error)})') from error

    def _compare(self, file: FileIO) -> None:
        found = stamp(os.fstat(file.fileno()))
        if found != self.stamp:
            if found[0] != self.stamp[0] or not self._same_content(file):
                raise DataChanged(f'{self.path}: changed since it was opened; do not modify data during a run')
            object.__setattr__(self, 'stamp', found)  # so that the content is read once

    def _same_content(self, file: FileIO) -> bool:
        """Whether the content has the CRC-32 of the archive; without one, nothing is known."""
        if self.crc is None:
            return False
        expected, crc = self.crc
        file.seek(self.offset)
        left = self.nbytes
        while left and (some := file.read(min(left, CHUNK))):
            crc, left = zlib.crc32(some, crc), left - len(some)
        return crc == expected

    def _read(self, file: FileIO, view: memoryview, offset: int) -> None:
        file.seek(offset)
        while view:  # a network file system may return less than asked for
            count = file.readinto(view)
            if not count:
                self._compare(file)
                raise DataChanged(f'{self.path}: ends at offset {file.tell()}, {len(view)} bytes too early')
            view = view[count:]
