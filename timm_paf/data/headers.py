"""Headers of arrays in `.npy`, `.npz` and `.bin` files: where the data begin, which axis is which, and the labels."""

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from math import isqrt, prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from timm_paf.data.errors import BadArchive, name_in_errors
from timm_paf.data.stored import StoredArray, stamp

LAYOUTS = ('NHWC', 'NCHW', 'HWCN', 'CHWN')
IMAGE_FILES = ('images.npy', 'image.npy', 'X.npy', 'data.npy', 'images.bin')  # names that a folder may contain
_WORDS = {'images': 'labels', 'image': 'label', 'imgs': 'labels', 'img': 'label', 'x': 'y', 'data': 'targets'}
_WORD = re.compile(r'(?<![a-z0-9])(images?|imgs?|x|data)(?![a-z0-9])', re.IGNORECASE)


def npy_header(path: Path) -> StoredArray:
    """Read the header of a `.npy` file."""
    with name_in_errors(f'{path}: not a readable .npy file'), open(path, 'rb') as file:
        status = os.fstat(file.fileno())
        return _read_header(file, status.st_size, path=path, stamp=stamp(status))


def zip_headers(path: Path, *choices: Sequence[str]) -> list[StoredArray]:
    """Read the headers of members of an `.npz` archive: of the one of `choices` that it has all names of."""
    with name_in_errors(f'{path}: not a readable .npz archive'), open(path, 'rb') as file, \
            zipfile.ZipFile(file) as archive:
        members = [name.removesuffix('.npy') for name in archive.namelist()]
        found = [keys for keys in choices if set(keys) <= set(members)]
        if len(found) != 1:
            wanted = ' or '.join(' and '.join(map(repr, keys)) for keys in choices)
            raise BadArchive(
                f'{path}: holds {", ".join(members[:8]) or "nothing"}; expected either {wanted}; rename the members')
        return [_member_header(path, file, archive, key) for key in found[0]]


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Names of the classes of an archive: a member `class_names`, or lines of `class_names.txt` next to it, if any."""
    with name_in_errors(f'{path}: its class names cannot be read'):
        if path.suffix not in ('.npy', '.bin'):
            with zipfile.ZipFile(path) as archive:
                if 'class_names.npy' in archive.namelist():
                    with archive.open('class_names.npy') as member:
                        names = npy.read_array(member, allow_pickle=False)
                    if names.dtype.kind not in 'SU' or names.ndim != 1:
                        raise BadArchive(f"{path}: 'class_names' is of dtype {names.dtype}, expected text (K,)")
                    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
        file = path.with_name('class_names.txt')
        return tuple(file.read_text(encoding='utf-8').splitlines()) if file.exists() else None


def _member_header(path: Path, file: IO[bytes], archive: zipfile.ZipFile, key: str) -> StoredArray:
    info = archive.getinfo(f'{key}.npy')
    with name_in_errors(f"{path}: '{key}' cannot be read"), archive.open(info) as member:
        begin = file.tell()  # the archive has just read the local header, which is in front of the member
        array = _read_header(member, info.file_size, path=path, stamp=stamp(os.fstat(file.fileno())), key=key)
        if info.compress_type != zipfile.ZIP_STORED:
            return replace(array, compressed=True, crc=(info.CRC, 0))
        file.seek(begin)
        return replace(array, offset=begin + array.offset, crc=(info.CRC, zlib.crc32(file.read(array.offset))))


def _read_header(file: IO[bytes], size: int, **place: Any) -> StoredArray:
    """The array in a stream of `size` bytes."""
    version = npy.read_magic(file)
    shape, fortran, dtype = (
        npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file))
    array = StoredArray(shape=shape, dtype=dtype, fortran=fortran, offset=file.tell(), **place)
    if dtype.hasobject:
        raise BadArchive(
            f'{array.where} is of dtype {dtype}: pickled objects can execute code and are not read; save plain arrays')
    if (stored := size - array.offset) != array.nbytes:
        raise BadArchive(f'{array.where} holds {stored} bytes but its header says {array.nbytes}; get the file again')
    return array


def name_axes(
    image: StoredArray, label: StoredArray, *, num_classes: int, channels: int | None, layout: str | None,
) -> tuple[StoredArray, StoredArray]:
    """Check the shapes and dtypes of images and labels, and name their axes.

    The number of labels shows whether the image axis is first or last, `channels` (1 or 3 if None) which axis is C.
    """
    shape, accepted = image.shape, (1, 3) if channels is None else (channels,)
    if image.dtype != np.uint8 and image.dtype.kind != 'f':
        raise BadArchive(
            f'{image.where} is of dtype {image.dtype}, expected uint8 (0 to 255) or floats in [0, 1] or [0, 255]; '
            f'convert it')
    if len(shape) != 4 or 0 in shape:
        raise BadArchive(
            f'{image.where} has shape {shape}, expected (N, H, W, C) or (N, C, H, W) with nothing empty; reshape it')
    count = label.shape[0] if label.shape else 0
    last = layout in LAYOUTS[2:] if layout else shape[0] != count and shape[3] == count
    fitting = [
        name for name in LAYOUTS[2 * last:2 * last + 2]
        if shape[name.index('C')] in accepted and layout in (None, name)]
    if not fitting:
        raise BadArchive(
            f'{image.where} has shape {shape}, expected {" or ".join(map(str, accepted))} channels as the '
            f'{"first or third" if last else "last or second"} axis{f" ({layout})" if layout else ""}; '
            f'is this archive for another data set?')
    if len(fitting) == 2 and prod(shape) != count:
        raise BadArchive(
            f'{image.where} has shape {shape}, which can be {fitting[0]} or {fitting[1]}; choose one with layout=')
    soft = len(label.shape) == 2 and label.dtype.kind == 'f'
    if not soft and label.dtype.kind not in 'iu':
        raise BadArchive(
            f'{label.where} is of dtype {label.dtype}, expected integers, or floats (N, {num_classes}) as soft labels; '
            f'convert it')
    images = shape[fitting[0].index('N')]
    expected = (images, num_classes) if soft else (images,)
    if label.shape != expected:
        raise BadArchive(
            f'{label.where} has shape {label.shape} for {images} images, expected {expected}; correct the labels')
    return image.with_axes(fitting[0]), label.with_axes('NK' if soft else 'N')


def find_labels(path: Path) -> Path:
    """The file with the labels of the images in `path`, found by its name in the same folder.

    It is a `.npy` file. Its name is the name of the images with the last word for images replaced: `images` by
    `labels`, `image` by `label`, `X` by `Y`, `data` by `targets` (`cifar_sorted_images.bin`,
    `cifar_sorted_labels.npy`); or it ends in `_labels` or `_label` (`part0.npy`, `part0_labels.npy`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are several.
    """
    names = [f'{path.stem}_labels.npy', f'{path.stem}_label.npy']
    if found := list(_WORD.finditer(path.stem)):
        word = found[-1][0]
        other = _WORDS[word.lower()]
        other = other.upper() if word.isupper() else other.title() if word.istitle() else other
        names.insert(0, f'{path.stem[:found[-1].start()]}{other}{path.stem[found[-1].end():]}.npy')
    present = [name for name in names if path.with_name(name).exists()]
    if len(present) > 1:
        raise BadArchive(f'{path}: the labels can be {" or ".join(present)}; keep one, or choose with labels=')
    if not present:
        raise FileNotFoundError(
            f'{path}: no file with labels, expected {" or ".join(names)} in the same folder; put it there')
    return path.with_name(present[0])


def bin_header(path: Path, count: int, *, channels: int | None, layout: str) -> StoredArray:
    """As many square uint8 images as there are labels, `count`, in a file without a header; 3 or 1 channels if None."""
    status = path.stat()
    pixels, rest = divmod(status.st_size, count) if count else (0, status.st_size)
    for number in (3, 1) if channels is None else (channels,):
        side = isqrt(pixels // number)
        if not rest and side and side * side * number == pixels:
            row = (number, side, side) if layout == 'NCHW' else (side, side, number)
            return StoredArray(path, (count, *row), np.dtype(np.uint8), stamp(status))
    raise BadArchive(
        f'{path}: holds {status.st_size} bytes for {count} labels, which is {status.st_size / max(count, 1):.6g} bytes '
        f'per image, expected square images with {channels or "3 or 1"} channels (3072 bytes for 32x32x3); get the '
        f'file again')
