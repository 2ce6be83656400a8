"""Labelled images on disk, in the forms in which generators of synthetic data publish them."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from timm.utils.misc import natural_key

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import BadArchive, naming
from timm_paf.data.files import whole_file
from timm_paf.data.folders import FolderImages
from timm_paf.data.headers import Header, zip_header
from timm_paf.data.layout import LAYOUTS, check_image_header, check_label_header, find_layout
from timm_paf.data.manifest import MANIFEST_NAME, manifest_parts
from timm_paf.data.pairs import IMAGE_FILES, read_pair
from timm_paf.data.stored import MemoryFile, Progress, StoredArray
from timm_paf.data.unpack import unpacked

IN_MEMORY = 1 << 24  # bytes of images up to which an archive is read whole: less than what importing torch takes
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
    """Open labelled images on disk; the kind of path decides how.

    - `.npz` (or any other name): members `image` and `label` (EDM, DDPM) or `X` and `Y` (CIFAR-5m). Stored ones are
      read in place, deflated ones are unpacked once into a cache.
    - `.npy`: images, with labels in another `.npy` beside it; `labels_beside` says how it is found.
    - `.bin`: bare uint8 images, one after the other, with labels in a `.npy` beside it.
    - a folder: `images.npy` or `images.bin` with its labels; or the parts that its `manifest.json` lists, all of which
      must be there; or `.npz` parts, all of them in natural order; or image files in a sub-folder for each class
      (`FolderImages`).

    Images are uint8, or floats in [0, 1] or [0, 255] (the sample decides which), with axes NHWC, NCHW, or with the
    image axis last as in SVHN's HWCN. Labels are integers (N,), or soft, floats (N, num_classes). Headers and a fixed
    sample are checked before anything else is read, and pickled objects are never loaded.

    Args:
        path: file or folder.
        num_classes: number of classes; labels must lie in 0..num_classes-1.
        channels: number of channels of an image; without it an axis of 1 or 3 is taken for the channels.
        layout: 'NHWC', 'NCHW', 'HWCN' or 'CHWN' where the shape alone leaves it open.
        labels: the file with the labels of a `.npy` or `.bin`, where its name does not say so.
        mapped: True to leave the images on the disk and read what `take` asks for, False to read all of them now. If
            None, up to 16 MiB of images (of all parts together) are read now, and every byte of them is checked.
        cache_dir: where deflated archives are unpacked; None for `default_cache_dir()`.
        progress: called as progress(what, done, in all) while one is unpacked.

    Returns:
        `LabelledImages` for what is in memory, else a source that reads from the disk (`DiskImages`, `FolderImages`, or
        `ConcatenatedImages` for a folder of parts); images (N, C, H, W), named after the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such an archive; one line that names the file and, where it applies, the member and the
            index or offset.
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
    message = f'{path}: not a readable .npz archive'
    with naming(str(path), message), zipfile.ZipFile(path) as archive:
        image_key, label_key = _find_keys(path, archive.namelist())
        image, label = (zip_header(path, archive, key) for key in (image_key, label_key))
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
    """Open several archives as one source, in the order given; nothing is copied to join them.

    Args:
        paths: at least one file or folder.
        num_classes: as for `open_archive`.
        channels: as for `open_archive`.
        layout: as for `open_archive`; the parts may differ in layout if this is None.
        mapped: as for `open_archive`.
        cache_dir: as for `open_archive`.
        progress: as for `open_archive`.

    Raises:
        FileNotFoundError: if a file is missing; this is found out before any file is read.
        ValueError: if there is no path, a file is not such an archive, or image shapes differ between files.
    """
    if isinstance(paths, str | os.PathLike) or not paths:
        raise ValueError(f'got paths={paths!r}, expected a sequence of at least one path')
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f'{path}: no such file; check the path')
    if mapped is None and sum(Path(path).stat().st_size for path in paths) > IN_MEMORY:
        mapped = True  # many small parts are not small
    parts = [
        open_archive(
            path, num_classes=num_classes, channels=channels, layout=layout, mapped=mapped, cache_dir=cache_dir,
            progress=progress)
        for path in paths
    ]
    return parts[0] if len(parts) == 1 else ConcatenatedImages(parts)


def save_archive(path: str | os.PathLike[str], data: LabelledImages) -> None:
    """Write uint8 images as an uncompressed EDM archive: `image` (N, H, W, C) uint8 and `label` (N,) int64.

    The file appears under its name only when it is complete and on the disk; one that was there is replaced in one
    step. Equal data gives equal bytes.

    Args:
        path: the file to write; its folder must exist.
        data: images of dtype uint8.

    Raises:
        ValueError: if the images are not uint8.
        OSError: if the file cannot be written; nothing is left behind then.
    """
    if data.images.dtype != torch.uint8:
        raise ValueError(f'{data.name}: got images of dtype {data.images.dtype}, archives hold uint8; quantise them')
    write_arrays(path, data.images.permute(0, 2, 3, 1).cpu().numpy(), data.labels.cpu().numpy())


def write_arrays(path: str | os.PathLike[str], image: np.ndarray, label: np.ndarray) -> None:
    """Write arrays as the members `image` and `label` of an uncompressed archive; see `save_archive` for how.

    Args:
        path: the file to write; its folder must exist.
        image: (N, H, W, C) uint8.
        label: (N,) integers.

    Raises:
        OSError: if the file cannot be written; nothing is left behind then.
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


def _open_arrays(path: Path, image: Header, label: Header, options: _Options) -> ImageSource:
    """A source from headers: in memory, in place, or in the cache."""
    check_image_header(image)
    layout = find_layout(image, label, options.channels, options.layout)
    axis = layout.index('N')
    check_label_header(label, image.shape[axis], options.num_classes)
    in_memory = image.nbytes <= IN_MEMORY if options.mapped is None else not options.mapped
    plain = all(_in_place(header, number) for header, number in ((image, axis), (label, 0)))
    files = None
    if plain:
        pixels, targets = image.stored(), label.stored()
    elif in_memory:
        (pixels, file), (targets, label_file) = _read_rows(image, axis), _read_rows(label, 0)
        files = file, label_file
    else:
        copies = unpacked(
            {'pixels': (image, axis), 'targets': (label, 0)}, cache_dir=options.cache_dir, progress=options.progress)
        pixels, targets = copies['pixels'], copies['targets']
    row = layout.replace('N', '')
    source = DiskImages(
        pixels, targets, layout=row[::-1] if image.fortran else row, num_classes=options.num_classes, name=path.name,
        files=files)
    return source.load() if in_memory else source


def _in_place(header: Header, axis: int) -> bool:
    """Whether the rows of an array lie in the file one after the other."""
    physical = len(header.shape) - 1 - axis if header.fortran else axis
    return header.offset is not None and physical == 0


def _read_rows(header: Header, axis: int) -> tuple[StoredArray, MemoryFile]:
    """An array in memory with the image axis first; zipfile checks its CRC."""
    with naming(header.where):
        if header.key:
            with zipfile.ZipFile(header.path) as archive, archive.open(f'{header.key}.npy') as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        else:
            array = np.load(header.path, allow_pickle=False)
    physical = array.T if header.fortran else array
    rows = np.ascontiguousarray(np.moveaxis(physical, len(header.shape) - 1 - axis if header.fortran else axis, 0))
    return StoredArray(header.path, header.key, 0, rows.shape, rows.dtype), MemoryFile(header.path, rows)


def _find_keys(path: Path, members: list[str]) -> tuple[str, str]:
    found = [pair for pair in _KEYS if all(f'{key}.npy' in members for key in pair)]
    if len(found) != 1:
        held = ', '.join(member.removesuffix('.npy') for member in members[:8]) or 'nothing'
        raise BadArchive(
            f"{path}: holds {held}; expected either 'image' and 'label' or 'X' and 'Y'; rename the members"
        )
    return found[0]
