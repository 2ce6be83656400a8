"""Full check of labelled images: every byte, label and pixel, where opening checks a sample."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_paf.data.archives import open_archive
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.datasets import ImagesWithout
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive, errors_on_opening, first_line
from timm_paf.data.stored import Progress, StoredArray

_BATCH = 256  # images per call of `take`


def verify_archive(
    source: ImageSource | str | os.PathLike[str], *, progress: Progress | None = None, **options: Any,
) -> int:
    """Read and check everything: checksums of zip members, labels against the classes, the range of float pixels.

    Parts of a `ConcatenatedImages` are checked one by one, and all image files are decoded. This needs a few megabytes
    of memory.

    Args:
        source: An open source; or a path, which is opened without reading it into memory.
        progress: Called as progress(what, done, total), in bytes or in images.
        **options: For a path, those of `open_archive`; `num_classes` is required.

    Returns:
        The number of images checked.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: At the first error; one line with the file, the member and the index.
    """
    if isinstance(source, str | os.PathLike):
        if 'num_classes' not in options:
            raise ValueError(f'{source}: got no num_classes, expected it with a path; labels are checked against it')
        source = open_archive(Path(source), progress=progress, **{'mapped': True, **options})
    elif options:
        raise ValueError(f'got {", ".join(options)} with an open source, expected them only with a path')
    with errors_on_opening():
        _verify(source, progress)
    return len(source)


def _verify(source: ImageSource, progress: Progress | None) -> None:
    if isinstance(source, ConcatenatedImages):
        for part in source.parts:
            _verify(part, progress)
    elif isinstance(source, ImagesWithout):  # a checksum covers the whole file, also the images left out
        _verify(source.source, progress)
    elif isinstance(source, DiskImages):
        _verify_array(source.targets, source.target_fault, progress)
        _verify_array(source.pixels, source.pixel_fault, progress)
    else:
        _verify_batches(source, progress)


def _verify_array(
    array: StoredArray, fault: Callable[[np.ndarray, np.ndarray], str | None], progress: Progress | None,
) -> None:
    for start, rows in array.chunks():
        if message := fault(rows, np.arange(start, start + len(rows))):
            raise BadArchive(message)
        if progress:
            done = (start + len(rows)) * array.row_bytes
            progress(f'checking {array.key or array.path.name}', done, array.nbytes)


def _verify_batches(source: ImageSource, progress: Progress | None) -> None:
    """Check any source through `take`."""
    for start in range(0, len(source), _BATCH):
        stop = min(start + _BATCH, len(source))
        try:
            LabelledImages(*source.take(torch.arange(start, stop)), source.num_classes, source.name)
        except (OSError, ValueError) as error:
            raise BadArchive(f'{first_line(error)} (indices {start} to {stop - 1})') from error
        if progress:
            progress(f'checking {source.name}', stop, len(source))
