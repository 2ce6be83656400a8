"""Labelled images on disk, in the formats in which synthetic data are published."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils.misc import natural_key

from timm_paf._files import whole_file
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.classes import class_names as names_of
from timm_paf.data.classes import match_classes
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive
from timm_paf.data.folders import FolderImages
from timm_paf.data.headers import (
    IMAGE_FILES,
    LAYOUTS,
    bin_header,
    find_labels,
    name_axes,
    npy_header,
    read_class_names,
    zip_headers,
)
from timm_paf.data.manifest import MANIFEST_NAME, manifest_parts
from timm_paf.data.stored import Progress
from timm_paf.data.unpack import unpacked

IN_MEMORY = 1 << 24  # bytes of images up to which an archive is read into memory; importing torch takes more
_KEYS = (('image', 'label'), ('X', 'Y'))  # EDM and DDPM archives, CIFAR-5m


def open_archive(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    channels: int | None = None,
    layout: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    mapped: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open labelled images on disk.

    The path selects the format: `.npz` (or any other name) with members `image` and `label` (EDM, DDPM) or `X` and `Y`
    (CIFAR-5m); `.npy` images, with labels in another `.npy` (see `find_labels`); `.bin`, uint8 images without a header,
    with labels in a `.npy`; or a folder: with such a pair, with the parts in its `manifest.json`, with `.npz` parts in
    natural order, or with image files in one sub-folder per class (`FolderImages`).

    Images are uint8, or floats in [0, 1] or [0, 255] (the sample decides), with axes NHWC or NCHW, or with the image
    axis last as in SVHN (HWCN). Labels are integers (N,), or soft labels: floats (N, num_classes). Headers and a fixed
    sample are checked on opening. Uncompressed members are read where they are. Pickled objects are never loaded.

    Class names are those of the folders of image files, a member `class_names` of an `.npz`, or a file
    `class_names.txt` (one name per line) next to the archive.

    Args:
        path: File or folder.
        num_classes: Number of classes; labels are in 0..num_classes-1. Required if there are no class names.
        class_names: Names of the classes 0, 1, … of other images; classes are matched by name if both have names (see
            `match_classes`).
        channels: Number of channels; 1 or 3 if None.
        layout: 'NHWC', 'NCHW', 'HWCN' or 'CHWN', if the shape alone is ambiguous.
        labels: File with the labels of a `.npy` or `.bin`, if its name does not show that.
        mapped: True to leave the images on disk, where `take` reads them; False to read all of them now. If None, up to
            16 MiB of images (of all parts together) are read now, and all their bytes are checked.
        cache_dir: Where compressed archives are unpacked; `default_cache_dir()` if None.
        progress: Called as progress(what, done, total) while an archive is unpacked.

    Returns:
        `LabelledImages` in memory, or a source that reads from disk (`DiskImages`, `FolderImages`, or
        `ConcatenatedImages` for a folder of parts). Images are (N, C, H, W).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such an archive; one line with the file and, where possible, the member and the index.
    """
    path = Path(path)
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"got layout={layout!r}, expected {', '.join(map(repr, LAYOUTS))} or None")
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise ValueError(f'got num_classes={num_classes!r}, expected an integer of at least 1')
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file; check the path, or make one with recipes/make_synthetic.py')
    if path.is_dir():
        return _open_folder(
            path, num_classes=num_classes, class_names=class_names, channels=channels, layout=layout, mapped=mapped,
            cache_dir=cache_dir, progress=progress)
    if path.suffix in ('.pkl', '.pickle'):
        raise BadArchive(f'{path}: pickles can execute code and are not read; see recipes/convert_pickle.py')
    if path.suffix in ('.npy', '.bin'):
        label = npy_header(Path(labels) if labels is not None else find_labels(path))
        if path.suffix == '.bin':
            layout = layout or 'NHWC'
            image = bin_header(path, label.shape[0] if label.shape else 0, channels=channels, layout=layout)
        else:
            image = npy_header(path)
    else:
        image, label = zip_headers(path, *_KEYS)
    names = read_class_names(path)
    count = num_classes if names is None else len(names)
    if count is None:
        raise ValueError(f'{path}: an archive without class names does not say its number of classes; give num_classes')
    image, label = name_axes(image, label, num_classes=count, channels=channels, layout=layout)
    small = image.nbytes <= IN_MEMORY
    in_memory = small if mapped is None else not mapped
    with tempfile.TemporaryDirectory() if small and in_memory else nullcontext(cache_dir) as cache:
        arrays = unpacked({'pixels': image, 'targets': label}, cache_dir=cache, progress=progress)
        source = DiskImages(**arrays, num_classes=count, name=path.name, class_names=names)
        return match_classes(source.load() if in_memory else source, class_names, num_classes=num_classes)


def open_archives(
    paths: Sequence[str | os.PathLike[str]], *, mapped: bool | None = None, **options: Any,
) -> ImageSource:
    """Open at least one file or folder as one source, in the order given, without copying them.

    All paths are checked first. Options and errors are those of `open_archive`; image shapes must be equal.
    """
    if isinstance(paths, str | os.PathLike) or not paths:
        raise ValueError(f'got paths={paths!r}, expected a sequence of at least one path')
    if missing := [path for path in paths if not Path(path).exists()]:
        raise FileNotFoundError(f'{missing[0]}: no such file; check the path')
    if mapped is None and sum(Path(path).stat().st_size for path in paths) > IN_MEMORY:
        mapped = True  # many small parts are large together
    parts: list[ImageSource] = []
    for path in paths:
        parts.append(open_archive(path, mapped=mapped, **options))
        if options.get('class_names') is None:  # classes of the parts are matched with those of the first one
            options |= dict(class_names=names_of(parts[0]), num_classes=parts[0].num_classes)
    return parts[0] if len(parts) == 1 else ConcatenatedImages(parts)


def _open_folder(path: Path, **options: Any) -> ImageSource:
    pairs = [path / name for name in IMAGE_FILES if (path / name).exists()]
    if len(pairs) > 1:
        raise BadArchive(f'{path}: holds {" and ".join(pair.name for pair in pairs)}; give the path of one of them')
    if not pairs and (path / MANIFEST_NAME).exists():
        return open_archives(manifest_parts(path), **options)
    parts = pairs or sorted(path.glob('[!.]*.npz'), key=lambda part: natural_key(part.name))
    if not parts:
        source = FolderImages(path, channels=options['channels'])
        return match_classes(source, options['class_names'], num_classes=options['num_classes'])
    return open_archives(parts, **options)


def save_archive(path: str | os.PathLike[str], data: LabelledImages) -> None:
    """Write uint8 images as an uncompressed EDM archive: `image` (N, H, W, C) uint8 and `label` (N,) int64.

    Class names, if there are any, are a third member, `class_names`.
    The file appears under its name when it is complete and on disk, and replaces an older one in one step. Equal data
    give equal bytes. The folder must exist. Raises ValueError if the images are not uint8.
    """
    if data.images.dtype != torch.uint8:
        raise ValueError(f'{data.name}: got images of dtype {data.images.dtype}, archives hold uint8; quantise them')
    image = data.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    names: dict[str, Any] = {} if data.class_names is None else {'class_names': np.array(data.class_names)}
    with whole_file(path) as file:
        np.savez(file, image=image, label=data.labels.cpu().numpy(), **names)
