"""Labelled images on disk, in the formats in which synthetic data are published."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from timm.utils.misc import natural_key

from timm_paf._files import whole_file
from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive, name_in_errors
from timm_paf.data.folders import FolderImages
from timm_paf.data.headers import (
    LAYOUTS,
    check_image_header,
    check_label_header,
    find_layout,
    row_major,
    zip_header,
)
from timm_paf.data.manifest import MANIFEST_NAME, manifest_parts
from timm_paf.data.pairs import IMAGE_FILES, read_pair
from timm_paf.data.stored import Progress, StoredArray
from timm_paf.data.unpack import unpacked

IN_MEMORY = 1 << 24  # bytes of images up to which an archive is read into memory; importing torch takes more
_KEYS = (('image', 'label'), ('X', 'Y'))  # EDM and DDPM archives, CIFAR-5m


@dataclass(frozen=True, kw_only=True)
class _Options:
    num_classes: int
    channels: int | None
    layout: str | None
    mapped: bool | None
    cache_dir: str | os.PathLike[str] | None
    progress: Progress | None


def open_archive(
    path: str | os.PathLike[str],
    *,
    num_classes: int,
    channels: int | None = None,
    layout: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    mapped: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open labelled images on disk.

    The path selects the format:

    - `.npz` (or any other name): members `image` and `label` (EDM, DDPM) or `X` and `Y` (CIFAR-5m). Uncompressed
      members are read where they are, compressed ones are unpacked once into a cache.
    - `.npy`: images, with labels in another `.npy`; `find_labels` describes its name.
    - `.bin`: uint8 images without a header, with labels in a `.npy`.
    - a folder: `images.npy` or `images.bin` with its labels; or the parts in its `manifest.json`, all of which must
      exist; or `.npz` parts in natural order; or image files in one sub-folder per class (`FolderImages`).

    Images are uint8, or floats in [0, 1] or [0, 255] (the sample decides), with axes NHWC or NCHW, or with the image
    axis last as in SVHN (HWCN). Labels are integers (N,), or soft labels: floats (N, num_classes). Headers and a fixed
    sample are checked on opening. Pickled objects are never loaded.

    Args:
        path: File or folder.
        num_classes: Number of classes; labels are in 0..num_classes-1.
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
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f'got num_classes={num_classes!r}, expected an integer of at least 1')
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file; check the path, or make one with recipes/make_synthetic.py')
    options = _Options(
        num_classes=num_classes, channels=channels, layout=layout, mapped=mapped, cache_dir=cache_dir,
        progress=progress)
    if path.is_dir():
        return _open_folder(path, options)
    if path.suffix in ('.pkl', '.pickle'):
        raise BadArchive(f'{path}: pickles can execute code and are not read; see recipes/convert_pickle.py')
    if path.suffix in ('.npy', '.bin'):
        pair = read_pair(path, Path(labels) if labels is not None else None, channels, layout)
        if path.suffix == '.bin':
            options = replace(options, layout=layout or 'NHWC')
        return _open_arrays(path, *pair, options)
    with name_in_errors(f'{path}: not a readable .npz archive'), zipfile.ZipFile(path) as archive:
        image, label = (zip_header(path, archive, key) for key in _find_keys(path, archive.namelist()))
    return _open_arrays(path, image, label, options)


def open_archives(
    paths: Sequence[str | os.PathLike[str]],
    *,
    num_classes: int,
    channels: int | None = None,
    layout: str | None = None,
    mapped: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open several archives as one source, in the order given, without copying them.

    Args:
        paths: At least one file or folder.
        num_classes: As for `open_archive`, as are the rest.
        channels: Number of channels.
        layout: Axes of all parts; if None, the parts may differ.
        mapped: Whether to leave images on disk.
        cache_dir: Where compressed archives are unpacked.
        progress: Called while an archive is unpacked.

    Raises:
        FileNotFoundError: If a file is missing; all paths are checked before any file is read.
        ValueError: If there is no path, a file is not such an archive, or image shapes differ between files.
    """
    if isinstance(paths, str | os.PathLike) or not paths:
        raise ValueError(f'got paths={paths!r}, expected a sequence of at least one path')
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f'{path}: no such file; check the path')
    if mapped is None and sum(Path(path).stat().st_size for path in paths) > IN_MEMORY:
        mapped = True  # many small parts are large together
    parts = [
        open_archive(
            path, num_classes=num_classes, channels=channels, layout=layout, mapped=mapped, cache_dir=cache_dir,
            progress=progress)
        for path in paths
    ]
    return parts[0] if len(parts) == 1 else ConcatenatedImages(parts)


def save_archive(path: str | os.PathLike[str], data: LabelledImages) -> None:
    """Write uint8 images as an uncompressed EDM archive: `image` (N, H, W, C) uint8 and `label` (N,) int64.

    The file appears under its name when it is complete and on disk, and replaces an older one in one step. Equal data
    give equal bytes.

    Args:
        path: The file to write; its folder must exist.
        data: Images of dtype uint8.

    Raises:
        ValueError: If the images are not uint8.
        OSError: If the file cannot be written; nothing is left then.
    """
    if data.images.dtype != torch.uint8:
        raise ValueError(f'{data.name}: got images of dtype {data.images.dtype}, archives hold uint8; quantise them')
    write_arrays(path, data.images.permute(0, 2, 3, 1).cpu().numpy(), data.labels.cpu().numpy())


def write_arrays(path: str | os.PathLike[str], image: np.ndarray, label: np.ndarray) -> None:
    """Write arrays as the members `image` and `label` of an uncompressed archive, as `save_archive` does.

    Args:
        path: The file to write; its folder must exist.
        image: (N, H, W, C) uint8.
        label: (N,) integers.

    Raises:
        OSError: If the file cannot be written; nothing is left then.
    """
    with whole_file(path) as file:
        np.savez(file, image=np.ascontiguousarray(image), label=label)


def _open_folder(path: Path, options: _Options) -> ImageSource:
    pairs = [path / name for name in IMAGE_FILES if (path / name).exists()]
    if len(pairs) > 1:
        raise BadArchive(f'{path}: holds {" and ".join(pair.name for pair in pairs)}; give the path of one of them')
    if not pairs and (path / MANIFEST_NAME).exists():
        return open_archives(manifest_parts(path), **vars(options))
    parts = pairs or sorted(path.glob('[!.]*.npz'), key=lambda part: natural_key(part.name))
    if not parts:
        return FolderImages(path, num_classes=options.num_classes, channels=options.channels)
    return open_archives(parts, **vars(options))


def _open_arrays(path: Path, image: StoredArray, label: StoredArray, options: _Options) -> ImageSource:
    """A source in memory, in place, or in the cache."""
    check_image_header(image)
    layout = find_layout(image, label, options.channels, options.layout)
    check_label_header(label, image.shape[layout.index('N')], options.num_classes)
    arrays = {'pixels': row_major(image, layout), 'targets': row_major(label, 'NK'[:len(label.shape)])}
    small = image.nbytes <= IN_MEMORY
    in_memory = small if options.mapped is None else not options.mapped
    with tempfile.TemporaryDirectory() if small and in_memory else nullcontext(options.cache_dir) as cache_dir:
        arrays.update(unpacked(
            {key: array for key, array in arrays.items() if array[0].offset is None or array[1][0] != 'N'},
            cache_dir=cache_dir, progress=options.progress))
        (pixels, axes), (targets, _) = arrays.values()
        source = DiskImages(pixels, targets, layout=axes[1:], num_classes=options.num_classes, name=path.name)
        return source.load() if in_memory else source


def _find_keys(path: Path, members: list[str]) -> tuple[str, str]:
    found = [pair for pair in _KEYS if all(f'{key}.npy' in members for key in pair)]
    if len(found) != 1:
        held = ', '.join(member.removesuffix('.npy') for member in members[:8]) or 'nothing'
        raise BadArchive(
            f"{path}: holds {held}; expected either 'image' and 'label' or 'X' and 'Y'; rename the members")
    return found[0]
