"""Images in one file and labels in another: `.npy` with `.npy`, and headerless `.bin` with `.npy`."""

import os
import re
from math import isqrt
from pathlib import Path

import numpy as np

from timm_paf.data.errors import BadArchive
from timm_paf.data.headers import Header, npy_header

IMAGE_FILES = ('images.npy', 'image.npy', 'X.npy', 'data.npy', 'images.bin')  # what a folder with a pair may hold
_WORDS = {'images': 'labels', 'image': 'label', 'imgs': 'labels', 'img': 'label', 'x': 'y', 'data': 'targets'}
_WORD = re.compile(r'(?<![a-z0-9])(images?|imgs?|x|data)(?![a-z0-9])', re.IGNORECASE)


def labels_beside(path: Path) -> Path:
    """The file with the labels of the images in `path`, found by its name.

    It lies in the same folder and ends in `.npy`. Its name is that of the images with the word for images replaced,
    `images` by `labels`, `image` by `label`, `X` by `Y`, `data` by `targets`, the last one if there are several
    (`cifar_sorted_images.bin`, `cifar_sorted_labels.npy`); or with `_labels` or `_label` added (`part0.npy`,
    `part0_labels.npy`).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are several.
    """
    stem, names = path.stem, []
    if found := list(_WORD.finditer(stem)):
        word = found[-1]
        other = _WORDS[word[0].lower()]
        other = other.upper() if word[0].isupper() else other.capitalize() if word[0][0].isupper() else other
        names.append(stem[:word.start()] + other + stem[word.end():])
    names += [f'{stem}_labels', f'{stem}_label']
    there = [beside for name in names if (beside := path.with_name(f'{name}.npy')).exists()]
    if len(there) > 1:
        raise BadArchive(
            f'{path}: the labels may be {" or ".join(file.name for file in there)}; keep one, or name it with labels=')
    if not there:
        wanted = ' or '.join(f'{name}.npy' for name in names)
        raise FileNotFoundError(f'{path}: has no labels beside it, expected {wanted}; put them there')
    return there[0]


def bin_header(path: Path, count: int, channels: int | None, layout: str | None) -> Header:
    """A file of bare uint8 images, one after the other: square ones, as many as there are labels.

    Args:
        path: the file.
        count: number of labels.
        channels: number of channels; without it 3, or else 1, whichever makes the images square.
        layout: 'NHWC' (also if None) or 'NCHW'.

    Raises:
        ValueError: if the length of the file is not that of so many square images.
    """
    size = os.stat(path).st_size
    pixels, rest = divmod(size, count) if count else (0, size)
    for number in (3, 1) if channels is None else (channels,):
        side = isqrt(pixels // number)
        if not rest and side and side * side * number == pixels:
            if layout not in (None, 'NHWC', 'NCHW'):
                raise BadArchive(f'{path}: got layout={layout!r} for a .bin file, expected NHWC or NCHW')
            row = (number, side, side) if layout == 'NCHW' else (side, side, number)
            return Header(path, '', (count, *row), False, np.dtype(np.uint8), 0)
    raise BadArchive(
        f'{path}: holds {size} bytes for {count} labels, which is {size / max(count, 1):.6g} bytes an image, expected '
        f'square images with {channels or "3 or 1"} channels (3072 bytes for 32x32x3); get the file again'
    )


def read_pair(path: Path, labels: Path | None, channels: int | None, layout: str | None) -> tuple[Header, Header]:
    """Headers of images and labels in files of their own; see `labels_beside` for how the second is found.

    Raises:
        FileNotFoundError: if there are no labels.
        ValueError: if a file is not as expected.
    """
    labels = labels or labels_beside(path)
    targets = npy_header(labels)
    if path.suffix == '.bin':
        count = targets.shape[0] if targets.shape else 0
        return bin_header(path, count, channels, layout), targets
    return npy_header(path), targets
