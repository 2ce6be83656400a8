"""Images in one file and labels in another: `.npy` with `.npy`, and `.bin` without a header with `.npy`."""

import os
import re
from math import isqrt
from pathlib import Path

import numpy as np

from timm_paf.data.errors import BadArchive
from timm_paf.data.headers import npy_header
from timm_paf.data.stored import Stamp, StoredArray

IMAGE_FILES = ('images.npy', 'image.npy', 'X.npy', 'data.npy', 'images.bin')  # names that a folder may contain
_WORDS = {'images': 'labels', 'image': 'label', 'imgs': 'labels', 'img': 'label', 'x': 'y', 'data': 'targets'}
_WORD = re.compile(r'(?<![a-z0-9])(images?|imgs?|x|data)(?![a-z0-9])', re.IGNORECASE)


def find_labels(path: Path) -> Path:
    """The file with the labels of the images in `path`, found by its name in the same folder.

    It is a `.npy` file. Its name is the name of the images with the last word for images replaced: `images` by
    `labels`, `image` by `label`, `X` by `Y`, `data` by `targets` (`cifar_sorted_images.bin`,
    `cifar_sorted_labels.npy`); or it ends in `_labels` or `_label` (`part0.npy`, `part0_labels.npy`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are several.
    """
    stem, names = path.stem, []
    if found := list(_WORD.finditer(stem)):
        word = found[-1]
        other = _WORDS[word[0].lower()]
        other = other.upper() if word[0].isupper() else other.capitalize() if word[0][0].isupper() else other
        names.append(stem[:word.start()] + other + stem[word.end():])
    names += [f'{stem}_labels', f'{stem}_label']
    present = [file for name in names if (file := path.with_name(f'{name}.npy')).exists()]
    if len(present) > 1:
        raise BadArchive(
            f'{path}: the labels can be {" or ".join(file.name for file in present)}; keep one, or choose with labels=')
    if not present:
        wanted = ' or '.join(f'{name}.npy' for name in names)
        raise FileNotFoundError(f'{path}: no file with labels, expected {wanted} in the same folder; put it there')
    return present[0]


def read_pair(
    path: Path, labels: Path | None, channels: int | None, layout: str | None,
) -> tuple[StoredArray, StoredArray]:
    """Headers of images and labels in two files.

    Args:
        path: The images.
        labels: The labels; found with `find_labels` if None.
        channels: Number of channels; for `.bin`, 3 or 1 if None.
        layout: Axes of the images in a `.bin`: 'NHWC' (also if None) or 'NCHW'.

    Raises:
        FileNotFoundError: If there are no labels.
        ValueError: If a file is not as expected.
    """
    targets = npy_header(labels or find_labels(path))
    if path.suffix != '.bin':
        return npy_header(path), targets
    return _bin_header(path, targets.shape[0] if targets.shape else 0, channels, layout), targets


def _bin_header(path: Path, count: int, channels: int | None, layout: str | None) -> StoredArray:
    """A file of square uint8 images without a header, as many as there are labels."""
    status = os.stat(path)
    pixels, rest = divmod(status.st_size, count) if count else (0, status.st_size)
    for number in (3, 1) if channels is None else (channels,):
        side = isqrt(pixels // number)
        if not rest and side and side * side * number == pixels:
            if layout not in (None, 'NHWC', 'NCHW'):
                raise BadArchive(f'{path}: got layout={layout!r} for a .bin file, expected NHWC or NCHW')
            row = (number, side, side) if layout == 'NCHW' else (side, side, number)
            return StoredArray(path, '', (count, *row), np.dtype(np.uint8), Stamp.of(status))
    raise BadArchive(
        f'{path}: holds {status.st_size} bytes for {count} labels, which is {status.st_size / max(count, 1):.6g} bytes '
        f'per image, expected square images with {channels or "3 or 1"} channels (3072 bytes for 32x32x3); get the '
        f'file again'
    )
