"""Arrays in files: rows are read where they are, and a file that changes is noticed."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np

from timm_paf.data.errors import DataChanged, first_line

Progress = Callable[[str, int, int], None]  # what is being done, bytes or images done, total

CHUNK = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class Stamp:
    """State of a file, as far as it shows without reading it."""

    size: int
    modified_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> 'Stamp':
        """The stamp in a result of `os.stat`."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file in row-major order; the methods below need `offset`.

    Each read opens the file again and compares its stamp. So copies in threads and other processes (forked or pickled)
    read independently, and all of them notice a change. Files are not mapped: pages of a mapped file count as memory
    of the process, and truncation of the file would kill it with a signal instead of an error.

    Args:
        path: The file.
        key: Name of the array in an archive; empty if the file holds nothing else.
        shape: At least one axis.
        dtype: Plain numpy dtype without objects.
        stamp: State of the file when its header was read.
        offset: Position of the first byte; None if the array is compressed.
        fortran: Whether the order is column-major; `row_major` gives a row-major view.
        member: Position of the zip member that contains the array.
        crc: CRC-32 of the zip member; None outside archives.
        origin: Start of messages about the content, if the array is a copy of another one.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stamp: Stamp
    offset: int | None = 0
    fortran: bool = False
    member: int = 0
    crc: int | None = None
    origin: str = ''

    @property
    def where(self) -> str:
        """Start of a message about the content."""
        return self.origin or self._place

    @property
    def _place(self) -> str:
        return f"{self.path}: '{self.key}'" if self.key else f'{self.path}:'

    @property
    def _start(self) -> int:
        assert self.offset is not None, 'compressed arrays have no rows'
        return self.offset

    @property
    def nbytes(self) -> int:
        """Length of the data in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Length of one row in bytes."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def check(self) -> None:
        """Raise `DataChanged` if the file is not the one that was opened, or was modified."""
        with self._opened():
            pass

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Read rows in the order of the indices, and nothing else.

        Args:
            indices: (B,) int64 in 0..shape[0]-1.

        Returns:
            (B, *shape[1:]) of this dtype.

        Raises:
            DataChanged: If the file changed or cannot be read.
        """
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        if not out.nbytes:
            return out
        length, view = self.row_bytes, out.reshape(-1).view(np.uint8).data
        order = np.argsort(indices, kind='stable')
        places, offsets = order.tolist(), (self._start + indices[order] * length).tolist()
        with self._opened() as file:
            if hasattr(os, 'posix_fadvise'):
                # no read-ahead, since the order is random; a cold disk works on all rows of a batch at once
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for offset in offsets:
                    os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
            for place, offset in zip(places, offsets, strict=True):
                self._read(file, view[place * length:(place + 1) * length], offset)
        return out

    def range(self, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` to `stop`, as `rows` does."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._opened() as file:
            if out.nbytes:
                view = out.reshape(-1).view(np.uint8).data
                self._read(file, view, self._start + start * self.row_bytes)
        return out

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, about `size` bytes at a time, each chunk with the index of its first row.

        Raises:
            DataChanged: As for `rows`; after the last chunk, if the CRC-32 is not the one in the archive.
        """
        step, crc = max(size // max(self.row_bytes, 1), 1), zlib.crc32(self._header())
        for start in range(0, self.shape[0], step):
            rows = self.range(start, min(start + step, self.shape[0]))
            crc = zlib.crc32(rows.reshape(-1).view(np.uint8).data, crc)
            yield start, rows
        if self.crc not in (None, crc):
            raise DataChanged(
                f'{self._place} is damaged (its CRC-32 is {crc:08x}, not {self.crc:08x}); get the file again')

    def load(self) -> np.ndarray:
        """The whole array; raises what `chunks` does."""
        out = np.empty(self.shape, self.dtype)
        for start, rows in self.chunks():
            out[start:start + len(rows)] = rows
        return out

    def _header(self) -> bytes:
        """What is in front of the data in the zip member; the checksum covers it."""
        header = bytearray(0 if self.crc is None else self._start - self.member)
        with self._opened() as file:
            self._read(file, memoryview(header), self.member)
        return bytes(header)

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        """The file, with its stamp compared before and after the block."""
        try:
            with open(self.path, 'rb', buffering=0) as file:
                self._compare(file)
                yield file
                self._compare(file)
        except OSError as error:
            raise DataChanged(
                f'{self.path}: cannot be read any more ({error.strerror or first_line(error)})') from error

    def _compare(self, file: FileIO) -> None:
        now = Stamp.of(os.fstat(file.fileno()))
        if now == self.stamp:
            return
        if now.size != self.stamp.size:
            what = f'it had {self.stamp.size} bytes and has {now.size} now'
        elif (now.inode, now.device) != (self.stamp.inode, self.stamp.device):
            what = 'another file has replaced it'
        else:
            what = 'it was written to'
        raise DataChanged(f'{self.path}: changed since it was opened ({what}); do not modify data during a run')

    def _read(self, file: FileIO, view: memoryview, offset: int) -> None:
        file.seek(offset)
        while view:  # a network file system may return less than asked for
            count = file.readinto(view)
            if not count:
                self._compare(file)
                raise DataChanged(f'{self.path}: ends at offset {file.tell()}, {len(view)} bytes too early')
            view = view[count:]
