"""Cached copies of archives that cannot be read where they are: compressed, or with the image axis last."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from timm_paf._files import cache_dir as default_cache_dir
from timm_paf._files import whole_file
from timm_paf.data.errors import BROKEN, BadArchive, name_in_errors
from timm_paf.data.headers import rows_first, zip_header
from timm_paf.data.stored import CHUNK, Progress, StoredArray

try:
    import fcntl
except ImportError:  # Windows: two processes may both unpack; the copy that is complete first is used
    fcntl = None  # type: ignore[assignment]

__all__ = ['default_cache_dir', 'only_process', 'unpacked']

_FORMAT = 2  # of the cache; increase it with any change of what is written
_SPARE = 1 << 24  # bytes that stay free on the disk
_BLOCK = 1 << 25  # bytes of images transposed at a time

Axes = tuple[StoredArray, str]  # an array, and the names of its axes in row-major order


def unpacked(
    arrays: Mapping[str, Axes], *, cache_dir: str | os.PathLike[str] | None, progress: Progress | None,
) -> dict[str, Axes]:
    """Copies of arrays of one archive that can be read in place, from the cache or written to it now.

    The cache has one uncompressed `.npz` per archive. Its name contains a hash of the archive's own checksums, so a
    changed archive never gets an old copy. It appears under its name when it is complete. If several processes need it,
    one unpacks and the others wait.

    Args:
        arrays: Key in the copy to array and axes, such as 'HWCN'. Arrays with N first are compressed zip members.
        cache_dir: The cache, made if missing; `default_cache_dir()` if None.
        progress: Called as progress(what, bytes done, total bytes).

    Returns:
        The copies under the same keys, with the image axis N first.

    Raises:
        ValueError: If the archive is damaged or the cache has no room. No incomplete copy is left.
    """
    if not arrays:
        return {}
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    source = next(iter(arrays.values()))[0].path
    identity = json.dumps([_FORMAT, {key: _identity(*array) for key, array in arrays.items()}])
    copy = cache / f'{source.stem[:64]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz'
    if (found := _find(copy, arrays)) is not None:
        return found
    failed = f'{source}: cannot be unpacked into the cache {cache}'
    with name_in_errors(failed, 'set TIMM_PAF_CACHE to another folder'):
        cache.mkdir(parents=True, exist_ok=True)
        with only_process(copy, source, progress) as alone:
            if (found := _find(copy, arrays)) is not None:
                return found
            if alone:
                for remains in cache.glob(f'.{glob.escape(copy.name)}.*.tmp'):  # of a process that was killed
                    remains.unlink()
            _check_room(source, cache, arrays)
            with suppress(FileExistsError), whole_file(copy) as file:
                _write(file, arrays, progress)
                if _find(copy, arrays) is not None:
                    raise FileExistsError  # another process was faster, without a lock: keep its copy
    if (found := _find(copy, arrays)) is None:
        raise BadArchive(f'{source}: its copy {copy} cannot be read; remove that file')
    return found


def _identity(array: StoredArray, axes: str) -> list[object]:
    """What identifies the content without reading it: the checksum of a zip member, else the state of the file."""
    content = array.crc if array.crc is not None else [str(array.path.resolve()), *vars(array.stamp).values()]
    return [array.key, array.shape, array.dtype.str, axes, content]


def _find(copy: Path, arrays: Mapping[str, Axes]) -> dict[str, Axes] | None:
    """The arrays of a copy, or None if it is missing or incomplete."""
    found = {}
    try:
        with zipfile.ZipFile(copy) as archive:
            for key, (array, axes) in arrays.items():
                target = zip_header(copy, archive, key)
                if target.shape != _copied_shape(array, axes) or target.dtype != array.dtype:
                    return None
                found[key] = replace(target, origin=array.where), rows_first(axes)
        return found
    except (*BROKEN, KeyError):
        return None


def _copied_shape(array: StoredArray, axes: str) -> tuple[int, ...]:
    return tuple(array.shape[axes.index(axis)] for axis in rows_first(axes))


def _write(file: IO[bytes], arrays: Mapping[str, Axes], progress: Progress | None) -> None:
    with zipfile.ZipFile(file, 'w') as archive:
        for key, (array, axes) in arrays.items():
            with archive.open(f'{key}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {
                    'descr': np.lib.format.dtype_to_descr(array.dtype), 'fortran_order': False,
                    'shape': _copied_shape(array, axes)})
                folder = Path(file.name).parent
                for piece in _pieces(array, progress) if axes[0] == 'N' else _transposed(array, axes, folder, progress):
                    member.write(piece)


def _pieces(array: StoredArray, progress: Progress | None) -> Iterator[bytes]:
    """The data of a zip member in their order; zipfile compares the CRC-32 at the end."""
    name, failed, done = f'{array.key}.npy', f'{array.where} cannot be read', 0
    with name_in_errors(failed), zipfile.ZipFile(array.path) as archive, archive.open(name) as member:
        member.read(archive.getinfo(name).file_size - array.nbytes)  # the header
        while piece := member.read(CHUNK):
            yield piece
            done += len(piece)
            if progress:
                progress(f'unpacking {array.path.name}', done, array.nbytes)


def _transposed(array: StoredArray, axes: str, folder: Path, progress: Progress | None) -> Iterator[bytes]:
    """The data of an array image after image; a compressed array goes through a temporary file in `folder`."""
    with tempfile.TemporaryFile(dir=folder) if array.offset is None else open(array.path, 'rb') as file:
        if array.offset is None:
            for piece in _pieces(array, progress):
                file.write(piece)
            file.flush()
        count = array.shape[axes.index('N')]
        step = max(_BLOCK // (array.nbytes // count), 1)
        for start in range(0, count, step):
            # mapped again for each block: pages of a mapped file count as memory of the process
            stored = np.memmap(file, array.dtype, 'r', array.offset or 0, array.shape)
            yield np.moveaxis(stored, axes.index('N'), 0)[start:start + step].tobytes()
            if progress:
                done = min(start + step, count)
                progress(f'transposing {array.path.name}', done * array.nbytes // count, array.nbytes)
    if array.offset is not None:
        array.check()


def _check_room(source: Path, cache: Path, arrays: Mapping[str, Axes]) -> None:
    # a compressed array with the image axis last is written twice
    needed = sum(array.nbytes * (1 + (axes[0] != 'N' and array.offset is None)) for array, axes in arrays.values())
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE:
        raise BadArchive(
            f'{source}: needs {needed / 1e6:.1f} MB uncompressed, the cache {cache} has {free / 1e6:.1f} MB left; free '
            f'some space, set TIMM_PAF_CACHE to another folder, or save the archive uncompressed'
        )


@contextmanager
def only_process(path: Path, source: Path, progress: Progress | None) -> Iterator[bool]:
    """Wait until no other process makes a file; False if the system or the file system has no locks.

    Args:
        path: The file; the lock is a hidden file next to it.
        source: What it is made from, for the message.
        progress: Called once if this process has to wait.
    """
    if fcntl is None:
        yield False
        return
    with open(path.with_name(f'.{path.name}.lock'), 'ab') as lock:
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
