"""Full check of labelled images: every byte, label and pixel, where opening checks a sample."""

import os
from typing import Any

import torch

from timm_paf.data.archives import open_archive
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.classes import RenumberedImages
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive, errors_on_opening, first_line
from timm_paf.data.splits import PartOfImages
from timm_paf.data.stored import Progress

_BATCH = 256  # images per call of `take`


def verify_archive(
    source: ImageSource | str | os.PathLike[str], *, progress: Progress | None = None, **options: Any,
) -> int:
    """Read and check everything: checksums of zip members, labels against the classes, the range of float pixels.

    All image files are decoded. This needs a few megabytes of memory. `progress` is called as progress(what, done,
    total), in bytes or in images. For a path, the options are those of `open_archive`. Returns the number of images
    checked. At the first error, raises ValueError: one line with the file, the member and the index.
    """
    if isinstance(source, str | os.PathLike):
        source = open_archive(source, progress=progress, **{'mapped': True, **options})
    elif options:
        raise ValueError(f'got {", ".join(options)} with an open source, expected them only with a path')
    with errors_on_opening():
        _verify(source, progress)
    return len(source)


def _verify(source: ImageSource, progress: Progress | None) -> None:
    if isinstance(source, ConcatenatedImages):
        for part in source.parts:
            _verify(part, progress)
    elif isinstance(source, PartOfImages | RenumberedImages):  # a checksum covers the whole file, not a part of it
        _verify(source.source, progress)
    elif isinstance(source, DiskImages):
        source.verify(progress)
    else:
        for indices in torch.arange(len(source)).split(_BATCH):
            try:
                LabelledImages(*source.take(indices), source.num_classes, source.name)
            except (OSError, ValueError) as error:
                raise BadArchive(f'{first_line(error)} (indices {indices[0]} to {indices[-1]})') from error
            if progress:
                progress(f'checking {source.name}', int(indices[-1]) + 1, len(source))
