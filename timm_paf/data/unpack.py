"""Arrays that cannot be read in place, deflated or with the image axis last: written anew once, into a cache."""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from timm_paf._files import cache_dir as default_cache_dir
from timm_paf.data.errors import BROKEN, BadArchive, first_line, human_bytes
from timm_paf.data.headers import Header, npy_header, read_npy_header
from timm_paf.data.stored import CHUNK, DiskFile, Progress, Stamp, StoredArray

try:
    import fcntl
except ImportError:  # Windows: two processes may both unpack; the first to finish is used
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1  # of a cache entry; raise it with any change of what is written
_RECORD = 'source.json'
_SPARE = 1 << 24  # bytes that are left free beside what is written


def unpacked(
    arrays: dict[str, tuple[Header, int]],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, StoredArray]:
    """Arrays of one archive as row-major files with the image axis first, from the cache or put there now.

    A folder of the cache holds one archive, called after its name and the checksums that the archive itself records, so
    another content never meets an old copy. It appears complete or not at all. Of several processes that want it at
    once, one unpacks and the others wait for it. `source.json` in it says what it was made from, with the SHA-256 of
    each array.

    Args:
        arrays: file name in the cache (without .npy) -> header and number of the axis that counts images.
        cache_dir: the cache, made if missing; None for `default_cache_dir()`.
        progress: called as progress(what, bytes done, bytes in all).

    Returns:
        The arrays in the cache under the same names, of shape (N, remaining axes in their stored order).

    Raises:
        ValueError: if the archive is damaged or the cache has no room; nothing is left behind then.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    source = next(iter(arrays.values()))[0].path
    made_from = {'format': _FORMAT, 'arrays': {name: _identity(*array) for name, array in arrays.items()}}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    entry = cache / f'{source.stem[:64]}-{digest[:16]}'
    if (found := _existing(entry, arrays)) is not None:
        return found
    with _cache_errors(source, cache):
        cache.mkdir(parents=True, exist_ok=True)
        with only_process(entry, source, progress) as alone:
            if (found := _existing(entry, arrays)) is not None:
                return found
            if alone:
                _remove_remains(entry)
            _check_room(source, cache, arrays)
            partial = entry.with_name(f'.{entry.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp')
            try:
                partial.mkdir()
                sums = {name: _write(partial, name, *array, progress) for name, array in arrays.items()}
                status = os.stat(source)
                record = {
                    'path': str(source.resolve()), 'size': status.st_size, 'modified_ns': status.st_mtime_ns,
                    **made_from, 'written': sums,
                }
                (partial / _RECORD).write_text(json.dumps(record, indent=1))
                try:
                    partial.rename(entry)
                except OSError:
                    if not entry.exists():  # else another process, without the lock, was first
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    if (found := _existing(entry, arrays)) is None:
        raise BadArchive(f'{source}: its copy {entry} cannot be used; remove that folder')
    return found


def _identity(header: Header, axis: int) -> dict[str, Any]:
    """What names the content without reading it: checksums where the archive has them, else the state of the file."""
    named: dict[str, Any] = dict(
        key=header.key, shape=header.shape, dtype=header.dtype.str, fortran=header.fortran, axis=axis)
    if header.crc is not None:
        return {**named, 'crc32': header.crc}
    return {**named, 'path': str(header.path.resolve()), 'stamp': list(vars(Stamp.of(os.stat(header.path))).values())}


def _existing(entry: Path, arrays: dict[str, tuple[Header, int]]) -> dict[str, StoredArray] | None:
    """The arrays of a cache entry, or None if it is not there or not whole."""
    try:
        written = json.loads((entry / _RECORD).read_text())['written']
        found = {}
        for name, (header, axis) in arrays.items():
            array = npy_header(entry / f'{name}.npy').stored()
            if array.shape != _rows_first(header, axis) or array.dtype != header.dtype:
                return None
            length = array.shape[0] * array.row_bytes
            checked = array.offset, length, int(written[name]['crc32'])
            found[name] = replace(array, checked=checked, origin=header.where)
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rows_first(header: Header, axis: int) -> tuple[int, ...]:
    """Shape in the cache: the image axis, then the others in the order in which they lie in memory."""
    others = [size for number, size in enumerate(header.shape) if number != axis]
    return header.shape[axis], *(others[::-1] if header.fortran else others)


def _write(
    folder: Path, name: str, header: Header, axis: int, progress: Progress | None,
) -> dict[str, Any]:
    """Write one array; returns the checksums of its data."""
    target = folder / f'{name}.npy'
    physical = len(header.shape) - 1 - axis if header.fortran else axis
    if physical == 0:
        return _write_npy(target, _rows_first(header, axis), header.dtype, _pieces(header, progress))
    assert physical == len(header.shape) - 1
    if header.offset is not None:
        return _write_npy(target, _rows_first(header, axis), header.dtype, _turned(header, progress))
    flat = folder / f'{name}.flat.npy'
    stored_shape = header.shape[::-1] if header.fortran else header.shape
    _write_npy(flat, stored_shape, header.dtype, _pieces(header, progress))
    turned = replace(npy_header(flat), fortran=False, key=header.key)
    sums = _write_npy(target, _rows_first(header, axis), header.dtype, _turned(turned, progress))
    flat.unlink()
    return sums


def _write_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterator[bytes]) -> dict[str, Any]:
    crc, sha256 = 0, hashlib.sha256()
    with open(path, 'xb') as file:
        np.lib.format.write_array_header_1_0(
            file, {'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape})
        for piece in pieces:
            file.write(piece)
            crc = zlib.crc32(piece, crc)
            sha256.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return {'crc32': crc, 'sha256': sha256.hexdigest()}


def _pieces(header: Header, progress: Progress | None) -> Iterator[bytes]:
    """The data of an array as they are stored, a few megabytes at a time; zipfile checks the CRC at their end."""
    where, done = header.where, 0
    try:
        with _open_data(header) as file:
            while piece := file.read(CHUNK):
                yield piece
                done += len(piece)
                if progress:
                    progress(f'unpacking {header.path.name}', done, header.nbytes)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadArchive(f'{where} cannot be read ({first_line(error)}); get the file again') from error


@contextmanager
def _open_data(header: Header) -> Iterator[IO[bytes]]:
    if header.key:
        with zipfile.ZipFile(header.path) as archive, archive.open(f'{header.key}.npy') as file:
            read_npy_header(file, header.where)
            yield file
    else:
        with open(header.path, 'rb') as file:
            file.seek(header.offset or 0)
            yield file


def _turned(header: Header, progress: Progress | None) -> Iterator[bytes]:
    """The data of an array whose last axis in memory counts the images, image after image."""
    array = header.stored()
    count, values = array.shape[-1], int(np.prod(array.shape[:-1]))
    lines = replace(array, shape=(values * count,))
    file = DiskFile(array.path)
    step = max(CHUNK * 8 // (values * array.dtype.itemsize), 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = np.stack([lines.read_range(file, row * count + start, row * count + stop) for row in range(values)])
        yield block.T.tobytes()
        if progress:
            progress(f'turning {header.path.name}', stop * values * array.dtype.itemsize, header.nbytes)
    file.check()


def _check_room(source: Path, cache: Path, arrays: dict[str, tuple[Header, int]]) -> None:
    needed = sum(header.nbytes for header, _ in arrays.values())
    # a deflated array whose image axis is last is there twice for a while
    needed += sum(h.nbytes for h, axis in arrays.values() if h.offset is None and (axis == 0) == h.fortran)
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE:
        raise BadArchive(
            f'{source}: needs {human_bytes(needed)} unpacked, the cache {cache} has {human_bytes(free)} left; free '
            f'some space, set TIMM_PAF_CACHE to another folder, or save the archive uncompressed'
        )


def _remove_remains(entry: Path) -> None:
    """Take away what a killed process left, and an entry that is not whole; the caller holds the lock."""
    for remains in entry.parent.glob(f'.{glob.escape(entry.name)}.*.tmp'):
        shutil.rmtree(remains, ignore_errors=True)
    if entry.exists():
        shutil.rmtree(entry)


@contextmanager
def only_process(entry: Path, source: Path, progress: Progress | None) -> Iterator[bool]:
    """Wait until no other process works on this entry; False where the system or the file system has no locks."""
    if fcntl is None:
        yield False
        return
    with open(entry.with_name(f'.{entry.name}.lock'), 'ab') as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    progress(f'waiting for another process to unpack {source.name}', 0, 1)
                fcntl.flock(lock, fcntl.LOCK_EX)
            alone = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            alone = False
        yield alone


@contextmanager
def _cache_errors(source: Path, cache: Path) -> Iterator[None]:
    try:
        yield
    except BadArchive:
        raise
    except BROKEN as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise BadArchive(
            f'{source}: cannot be unpacked into the cache {cache} ({reason}); set TIMM_PAF_CACHE to another folder'
        ) from error
