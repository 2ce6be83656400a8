"""A full check of labelled images: every byte, label and pixel, where opening looks at a sample only."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_paf.data.archives import open_archive
from timm_paf.data.arrays import ConcatenatedImages, ImageSource
from timm_paf.data.datasets import ImagesWithout
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive, DataChanged, first_line
from timm_paf.data.stored import CHUNK, Progress, StoredArray

_BATCH = 256  # images of a source that can only be asked for batches


def verify_archive(
    source: ImageSource | str | os.PathLike[str], *, progress: Progress | None = None, **options: Any,
) -> int:
    """Read everything and check it: CRCs of zip members, each label against the classes, each float pixel's range.

    Parts of a `ConcatenatedImages` are checked one by one; image files are all decoded. Memory stays at a few
    megabytes.

    Args:
        source: an open source, or a path, which is opened first without reading it into memory.
        progress: called as progress(what, done, in all), in bytes or in images.
        options: for a path, those of `open_archive`; `num_classes` has to be among them.

    Returns:
        The number of images checked.

    Raises:
        FileNotFoundError: if the path is not there.
        ValueError: about the first fault: one line that names the file, the member and the index or offset.
    """
    if isinstance(source, str | os.PathLike):
        if 'num_classes' not in options:
            raise ValueError(f'{source}: got no num_classes, expected it with a path; labels are checked against it')
        source = open_archive(Path(source), progress=progress, **{'mapped': True, **options})
    elif options:
        raise ValueError(f'got {", ".join(options)} with an open source, expected them only with a path')
    try:
        _verify(source, progress)
    except DataChanged as error:
        raise BadArchive(str(error)) from error
    return len(source)


def _verify(source: ImageSource, progress: Progress | None) -> None:
    if isinstance(source, ConcatenatedImages):
        for part in source.parts:
            _verify(part, progress)
    elif isinstance(source, ImagesWithout):  # what is left out is in the same file, and its checksum is that of all
        _verify(source.source, progress)
    elif isinstance(source, DiskImages):
        _verify_disk(source, progress)
    else:
        _verify_batches(source, progress)


def _verify_disk(source: DiskImages, progress: Progress | None) -> None:
    for start, targets in source.targets.chunks(source.target_file, _rows(source.targets)):
        if fault := source.target_fault(targets, np.arange(start, start + len(targets))):
            raise BadArchive(fault)
    if source.pixels.dtype != np.uint8:
        for start, pixels in source.pixels.chunks(source.pixel_file, _rows(source.pixels)):
            if fault := source.pixel_fault(pixels, np.arange(start, start + len(pixels))):
                raise BadArchive(fault)
    source.targets.check_crc(source.target_file, progress)
    source.pixels.check_crc(source.pixel_file, progress)
    source.target_file.check()
    source.pixel_file.check()


def _verify_batches(source: ImageSource, progress: Progress | None) -> None:
    """Any source, through `take`: it checks what it reads, and here what came out is checked as well."""
    for start in range(0, len(source), _BATCH):
        indices = torch.arange(start, min(start + _BATCH, len(source)))
        try:
            images, labels = source.take(indices)
        except (OSError, ValueError) as error:
            raise BadArchive(f'{source.name}: cannot be read from index {start} on ({first_line(error)})') from error
        bad = torch.zeros(len(indices), dtype=torch.bool)
        if images.is_floating_point():
            flat = images.flatten(1).cpu()
            bad |= ~((flat.amin(1) >= 0) & (flat.amax(1) <= 1))
        if labels.ndim == 1:
            bad |= ((labels < 0) | (labels >= source.num_classes)).cpu()
        if bad.any():
            index = start + int(bad.int().argmax())
            raise BadArchive(f'{source.name}: has a label or pixels out of range at index {index}; correct them')
        if progress:
            progress(f'checking {source.name}', start + len(indices), len(source))


def _rows(array: StoredArray) -> int:
    return max(CHUNK // max(array.row_bytes, 1), 1)
