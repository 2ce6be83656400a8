"""Cached copies of archives that cannot be read where they are: compressed, or with the image axis last."""

import glob
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from timm_paf._files import cache_dir as default_cache_dir
from timm_paf._files import whole_file
from timm_paf.data.errors import BadArchive, name_in_errors
from timm_paf.data.headers import zip_headers
from timm_paf.data.stored import CHUNK, Progress, StoredArray

_FORMAT = 2  # of the cache; increase it with any change of what is written
_BLOCK = 1 << 25  # bytes of images transposed at a time


def unpacked(
    arrays: Mapping[str, StoredArray], *, cache_dir: str | os.PathLike[str] | None, progress: Progress | None,
) -> dict[str, StoredArray]:
    """Arrays of one archive, with copies in the cache in place of those that cannot be read by rows.

    The cache has one uncompressed `.npz` per archive. Its name contains a hash of the archive's own checksums, so a
    changed archive never gets an old copy. It appears when it is complete; one process unpacks and the others wait.
    """
    needed = {key: array for key, array in arrays.items() if array.compressed or array.axes[0] != 'N'}
    if not needed:
        return dict(arrays)
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    source = next(iter(needed.values())).path
    identity = json.dumps([_FORMAT, {
        # the checksum of a zip member, else the state of the file, since reading all of it would take long
        key: [array.key, array.shape, array.dtype.str, array.axes,
              array.crc[0] if array.crc else [str(array.path.resolve()), *array.stamp]]
        for key, array in needed.items()}])
    copy = cache / f'{source.stem[:64]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz'
    if not (found := _find(copy, needed)):
        failed = f'{source}: cannot be unpacked into the cache {cache}'
        with name_in_errors(failed, 'free some space, or set TIMM_PAF_CACHE to another folder'):
            _make(copy, needed, progress)
        found = _find(copy, needed)
    return {**arrays, **found}


def _find(copy: Path, arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """The arrays of a copy; none if it is missing or incomplete."""
    try:
        found = dict(zip(arrays, zip_headers(copy, tuple(arrays)), strict=True))
    except BadArchive:
        return {}
    for key, array in arrays.items():
        if (found[key].shape, found[key].dtype) != (_copied_shape(array), array.dtype):
            return {}
        found[key] = replace(found[key], axes='N' + array.axes.replace('N', ''), origin=array.where)
    return found


def _copied_shape(array: StoredArray) -> tuple[int, ...]:
    return tuple(array.shape[array.axes.index(axis)] for axis in 'N' + array.axes.replace('N', ''))


def _make(copy: Path, arrays: Mapping[str, StoredArray], progress: Progress | None) -> None:
    """Write the copy; one process does it and the others wait, or where there are no locks, several do it."""
    cache, alone = copy.parent, True
    cache.mkdir(parents=True, exist_ok=True)
    with open(copy.with_name(f'.{copy.name}.lock'), 'ab') as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows; a file system without locks
            alone = False
        if _find(copy, arrays):  # another process has made it in the meantime
            return
        if alone:
            for remains in cache.glob(f'.{glob.escape(copy.name)}.*.tmp'):  # of a process that was killed
                remains.unlink()
        with whole_file(copy) as file:
            _write(file, arrays, progress)


def _write(file: IO[bytes], arrays: Mapping[str, StoredArray], progress: Progress | None) -> None:
    with zipfile.ZipFile(file, 'w') as archive:
        for key, array in arrays.items():
            pieces = _pieces if array.axes[0] == 'N' else _transposed
            with archive.open(f'{key}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {
                    'descr': array.dtype.str, 'fortran_order': False, 'shape': _copied_shape(array)})
                for piece in pieces(array, progress, Path(file.name).parent):
                    member.write(piece)


def _pieces(array: StoredArray, progress: Progress | None, folder: Path) -> Iterator[bytes]:
    """The data of a zip member in their order; zipfile compares the CRC-32 at the end."""
    name, done = f'{array.key}.npy', 0
    with name_in_errors(f'{array.where} cannot be read'), zipfile.ZipFile(array.path) as archive, \
            archive.open(name) as member:
        member.read(archive.getinfo(name).file_size - array.nbytes)  # the header
        while piece := member.read(CHUNK):
            yield piece
            done += len(piece)
            if progress:
                progress(f'unpacking {array.path.name}', done, array.nbytes)


def _transposed(array: StoredArray, progress: Progress | None, folder: Path) -> Iterator[bytes]:
    """The data of an array image after image; a compressed array goes through a temporary file in `folder`."""
    axis = array.axes.index('N')
    count = array.shape[axis]
    step = max(_BLOCK * count // array.nbytes, 1)
    with tempfile.TemporaryFile(dir=folder) if array.compressed else open(array.path, 'rb') as file:
        if array.compressed:
            file.writelines(_pieces(array, progress, folder))
            file.flush()
        for start in range(0, count, step):
            # mapped again for each block: pages of a mapped file count as memory of the process
            stored = np.memmap(file, array.dtype, 'r', 0 if array.compressed else array.offset, array.shape)
            yield np.moveaxis(stored, axis, 0)[start:start + step].tobytes()
            if progress:
                done = min(start + step, count)
                progress(f'transposing {array.path.name}', done * array.nbytes // count, array.nbytes)
    if not array.compressed:
        array.check()
