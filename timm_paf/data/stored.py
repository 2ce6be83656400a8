"""Arrays that lie uncompressed in a file: where they are, and rows of them read in place without mapping the file."""

import errno
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from timm_paf.data.errors import BadArchive, DataChanged, first_line

Progress = Callable[[str, int, int], None]  # what is being done, bytes (or images) done, all of them

CHUNK = 1 << 22
_MOST_VECTORS = 512  # POSIX lets preadv take 1024 (IOV_MAX) buffers at least on Linux, macOS and the BSDs


@dataclass(frozen=True)
class Stamp:
    """What tells one state of a file from another without reading it."""

    size: int
    modified_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> 'Stamp':
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


class DiskFile:
    """A file read at offsets, by any number of threads and processes at once, that notices when it changes.

    Reading goes through `preadv`. Pages of a mapped file would count as the process's own memory, and a file cut short
    would end it with a signal. A copy in another process (pickled or forked) opens the file for itself and takes it
    only in the state that the original saw.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()
        self.stamp = Stamp.of(os.fstat(self._fd))

    def _open(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, 'O_BINARY', 0) | getattr(os, 'O_CLOEXEC', 0))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise BadArchive(
                    f'{self.path}: cannot be opened, the system allows no more open files (one stays open for each '
                    f'part); raise the limit (ulimit -n), or join parts') from error
            raise
        self._pid = os.getpid()
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._fd)
        if hasattr(os, 'posix_fadvise'):
            # rows are asked for in a shuffled order, for which reading ahead only reads what nobody wants
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def __getstate__(self) -> dict[str, object]:
        return {'path': self.path, 'stamp': self.stamp}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        try:
            self._open()
        except OSError as error:
            raise DataChanged(f'{self.path}: cannot be opened again ({first_line(error)})') from error
        self.check()

    def check(self) -> None:
        """Make sure that the file under this path is still the one that was opened, and untouched.

        Raises:
            DataChanged: if it is not.
        """
        try:
            now = Stamp.of(os.stat(self.path))
        except OSError as error:
            raise DataChanged(f'{self.path}: is gone since it was opened ({error.strerror})') from error
        if now == self.stamp:
            return
        if now.size != self.stamp.size:
            what = f'had {self.stamp.size} bytes and has {now.size} now'
        elif (now.inode, now.device) != (self.stamp.inode, self.stamp.device):
            what = 'another file stands in its place'
        else:
            what = 'it was written to'
        raise DataChanged(f'{self.path}: changed since it was opened ({what}); leave data alone while a run uses them')

    def announce(self, offsets: list[int], length: int) -> None:
        """Let the system fetch stretches of one length at once, so that a cold disk works on all in parallel."""
        if hasattr(os, 'posix_fadvise'):
            for offset in offsets:
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def read_vectors(self, buffers: list[memoryview], offset: int) -> None:
        """Fill buffers, one after the other, with the bytes from `offset` on.

        Raises:
            DataChanged: if the file ends before they are full or cannot be read.
        """
        wanted = sum(len(buffer) for buffer in buffers)
        try:
            got = self._read(buffers, offset)
        except OSError as error:
            raise DataChanged(f'{self.path}: cannot be read at offset {offset} ({first_line(error)})') from error
        while got < wanted:
            # short reads are allowed (2 GiB a call on Linux, network file systems); the rest goes buffer by buffer
            buffers, skipped = _rest(buffers, got), got
            offset, wanted = offset + skipped, wanted - skipped
            try:
                got = self._read(buffers[:1], offset)
            except OSError as error:
                raise DataChanged(f'{self.path}: cannot be read at offset {offset} ({first_line(error)})') from error
            if not got:
                raise DataChanged(f'{self.path}: ends at offset {offset}, {wanted} bytes before it should')

    def _read(self, buffers: list[memoryview], offset: int) -> int:
        if self._pid != os.getpid():
            self._open()
        if hasattr(os, 'preadv'):
            return os.preadv(self._fd, buffers, offset)
        with self._lock:  # Windows: one position for all threads
            os.lseek(self._fd, offset, os.SEEK_SET)
            got = 0
            for buffer in buffers:
                data = os.read(self._fd, len(buffer))
                buffer[:len(data)] = data
                got += len(data)
                if len(data) < len(buffer):
                    break
            return got


class MemoryFile:
    """Bytes in memory behind the face of `DiskFile`: what was read whole, because it is small or was asked for so.

    Args:
        path: where they came from, for messages.
        array: a C-contiguous array that holds them.
    """

    def __init__(self, path: Path, array: np.ndarray) -> None:
        self.path = path
        self._bytes = array.reshape(-1).view(np.uint8)

    def check(self) -> None:
        """Nothing can have changed."""

    def announce(self, offsets: list[int], length: int) -> None:
        """Nothing has to be fetched."""

    def read_vectors(self, buffers: list[memoryview], offset: int) -> None:
        """Fill buffers, one after the other, with the bytes from `offset` on."""
        for buffer in buffers:
            buffer[:] = self._bytes[offset:offset + len(buffer)].data
            offset += len(buffer)


@dataclass(frozen=True)
class StoredArray:
    """An array in row-major order in a file, at an offset; the first axis counts the rows.

    Args:
        path: the file.
        key: what messages call the array, such as 'image'; empty where the file holds nothing else.
        offset: where its first byte lies.
        shape: at least one axis.
        dtype: a plain numpy dtype without objects.
        checked: (offset, length, CRC-32) of the bytes of the zip member around it, where there is one.
        origin: the start of messages about what it holds where this is a copy of something else.
    """

    path: Path
    key: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    checked: tuple[int, int, int] | None = None
    origin: str = ''

    @property
    def where(self) -> str:
        """The start of a message about what this array holds."""
        return self.origin or self._place

    @property
    def _place(self) -> str:
        return f"{self.path}: '{self.key}'" if self.key else f'{self.path}:'

    @property
    def row_bytes(self) -> int:
        """Length of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    def read_rows(self, file: DiskFile | MemoryFile, indices: np.ndarray) -> np.ndarray:
        """Copy out rows in the order asked for; reads only these, those next to each other in one call.

        Args:
            file: the open file at `path`.
            indices: (B,) int64 in 0..shape[0]-1.

        Returns:
            (B, *shape[1:]) of this dtype, a fresh array.

        Raises:
            DataChanged: if the file cannot be read there.
        """
        length = self.row_bytes
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        if not out.nbytes:
            return out
        view = out.reshape(-1).view(np.uint8).data
        order = np.argsort(indices, kind='stable')
        ascending = indices[order]
        starts = np.flatnonzero(np.diff(ascending, prepend=-2) != 1).tolist()
        places, rows = order.tolist(), ascending.tolist()
        if len(starts) > 1:
            file.announce([self.offset + row * length for row in rows], length)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            for first in range(start, stop, _MOST_VECTORS):
                buffers = [view[p * length:(p + 1) * length] for p in places[first:min(first + _MOST_VECTORS, stop)]]
                file.read_vectors(buffers, self.offset + rows[first] * length)
        return out

    def read_range(self, file: DiskFile | MemoryFile, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` in one read."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if out.nbytes:
            file.read_vectors([out.reshape(-1).view(np.uint8).data], self.offset + start * self.row_bytes)
        return out

    def chunks(self, file: DiskFile | MemoryFile, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, (first index, rows) for `rows` at a time."""
        for start in range(0, self.shape[0], rows):
            yield start, self.read_range(file, start, min(start + rows, self.shape[0]))

    def check_crc(self, file: DiskFile | MemoryFile, progress: Progress | None = None) -> None:
        """Read the whole zip member and compare its checksum; without one, see that every byte can be read.

        Raises:
            DataChanged: if a byte cannot be read or the checksum is another.
        """
        start, length, expected = self.checked or (self.offset, self.shape[0] * self.row_bytes, None)
        crc, buffer = 0, memoryview(bytearray(min(CHUNK, max(length, 1))))
        for done in range(0, length, CHUNK):
            part = buffer[:min(CHUNK, length - done)]
            file.read_vectors([part], start + done)
            if expected is not None:
                crc = zlib.crc32(part, crc)
            if progress:
                progress(f'checking {self.key or self.path.name}', done + len(part), length)
        if expected is not None and crc != expected:
            raise DataChanged(
                f'{self._place} cannot be read as it was written (the CRC-32 of bytes {start} to {start + length} is '
                f'{crc:08x}, not {expected:08x}); '
                f'get the file again'
            )


def _rest(buffers: list[memoryview], skip: int) -> list[memoryview]:
    """What is left of buffers behind their first `skip` bytes."""
    rest = []
    for buffer in buffers:
        if skip < len(buffer):
            rest.append(buffer[skip:])
        skip = max(skip - len(buffer), 0)
    return rest
