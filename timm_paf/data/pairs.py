"""Images in one file and labels in another: `.npy` with `.npy`, and `.bin` without a header with `.npy`."""

import re
from math import isqrt
from pathlib import Path

import numpy as np

from timm_paf.data.errors import BadArchive
from timm_paf.data.stored import StoredArray, stamp

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
