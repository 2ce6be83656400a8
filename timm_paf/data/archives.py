"""Image archives on disk: `.npz` files with labelled 8-bit images, as generators of synthetic data publish them."""

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages

_KEYS = (('image', 'label'), ('X', 'Y'))  # EDM and DDPM archives, CIFAR-5m
_CHANNELS = (1, 3)  # what may be taken for a channel axis when the caller does not say
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


def open_archive(
    path: str | os.PathLike[str], *, num_classes: int, channels: int | None = None, layout: str | None = None,
) -> LabelledImages:
    """Open one `.npz` archive of labelled images.

    The members are `image` and `label` (EDM, DDPM) or `X` and `Y` (CIFAR-5m): images uint8, (N, H, W, C) or
    (N, C, H, W); labels of any integer type, (N,). Headers are checked before any pixel is read, pickled objects are
    never loaded, and NHWC images are viewed as NCHW without a copy.

    Args:
        path: the file.
        num_classes: number of classes; labels must lie in 0..num_classes-1.
        channels: number of channels of an image; without it an axis of 1 or 3 is taken for the channels.
        layout: 'NHWC' or 'NCHW' where the shape alone leaves it open.

    Returns:
        Images (N, C, H, W) uint8 and labels (N,) int64, named after the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such an archive; one line that names the file and, where it applies, the member.
    """
    path = Path(path)
    if layout not in (None, 'NHWC', 'NCHW'):
        raise ValueError(f"got layout={layout!r}, expected 'NHWC', 'NCHW' or None")
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file; check the path, or make one with recipes/make_synthetic.py')
    try:
        with zipfile.ZipFile(path) as archive:
            image_key, label_key = _find_keys(path, archive.namelist())
            image_shape = _check_image_header(path, archive, image_key)
            to_nchw = _axes(path, image_key, image_shape, channels, layout)
            _check_label_header(path, archive, label_key, image_shape[0])
            labels = _read(path, archive, label_key)
            _check_label_range(path, label_key, labels, num_classes)
            images = _read(path, archive, image_key)
    except _BadArchive:
        raise
    except _BROKEN as error:
        raise _BadArchive(f'{path}: not a readable .npz archive ({_first_line(error)}); get the file again') from error
    return LabelledImages(
        torch.from_numpy(images).permute(to_nchw), torch.from_numpy(labels.astype(np.int64)), num_classes, path.name,
    )


def open_archives(
    paths: Sequence[str | os.PathLike[str]],
    *,
    num_classes: int,
    channels: int | None = None,
    layout: str | None = None,
) -> ImageSource:
    """Open several archives as one source, in the order given; nothing is copied to join them.

    Args:
        paths: at least one file.
        num_classes: as for `open_archive`.
        channels: as for `open_archive`.
        layout: as for `open_archive`; the parts may differ in layout if this is None.

    Raises:
        FileNotFoundError: if a file is missing; this is found out before any file is read.
        ValueError: if there is no path, a file is not such an archive, or image shapes differ between files.
    """
    if isinstance(paths, str | os.PathLike) or not paths:
        raise ValueError(f'got paths={paths!r}, expected a sequence of at least one path')
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f'{path}: no such file; check the path')
    parts = [open_archive(path, num_classes=num_classes, channels=channels, layout=layout) for path in paths]
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
    path = Path(path)
    if data.images.dtype != torch.uint8:
        raise ValueError(f'{data.name}: got images of dtype {data.images.dtype}, archives hold uint8; quantise them')
    image = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).cpu().numpy())
    partial = path.with_name(f'.{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp')
    try:
        with open(partial, 'xb') as file:
            np.savez(file, image=image, label=data.labels.cpu().numpy())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _BadArchive(ValueError):
    """A finished message about an archive, told apart from errors of the libraries that read it."""


def _find_keys(path: Path, members: list[str]) -> tuple[str, str]:
    found = [pair for pair in _KEYS if all(f'{key}.npy' in members for key in pair)]
    if len(found) != 1:
        held = ', '.join(member.removesuffix('.npy') for member in members[:8]) or 'nothing'
        raise _BadArchive(
            f"{path}: holds {held}; expected either 'image' and 'label' or 'X' and 'Y'; rename the members"
        )
    return found[0]


def _check_image_header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    shape, dtype = _header(path, archive, key)
    if dtype != np.uint8:
        raise _BadArchive(f"{path}: '{key}' is of dtype {dtype}, expected uint8 (0 to 255); convert it")
    if len(shape) != 4 or 0 in shape:
        raise _BadArchive(
            f"{path}: '{key}' has shape {shape}, expected (N, H, W, C) or (N, C, H, W) with nothing empty; reshape it"
        )
    return shape


def _check_label_header(path: Path, archive: zipfile.ZipFile, key: str, count: int) -> None:
    shape, dtype = _header(path, archive, key)
    if dtype.kind not in 'iu':
        raise _BadArchive(f"{path}: '{key}' is of dtype {dtype}, expected integers; convert it")
    if shape != (count,):
        raise _BadArchive(f"{path}: '{key}' has shape {shape} for {count} images, expected ({count},)")


def _check_label_range(path: Path, key: str, labels: np.ndarray, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        where = int(np.argmax((labels < 0) | (labels >= num_classes)))
        raise _BadArchive(
            f"{path}: '{key}' has values from {low} to {high}, expected 0 to {num_classes - 1} (first wrong one at "
            f'index {where}); is this archive made for another data set?'
        )


def _axes(
    path: Path, key: str, shape: tuple[int, ...], channels: int | None, layout: str | None,
) -> tuple[int, int, int, int]:
    """The permutation of axes that makes NCHW of the stored array."""
    accepted = _CHANNELS if channels is None else (channels,)
    readings = {'NHWC': shape[3], 'NCHW': shape[1]}
    fitting = [name for name, count in readings.items() if count in accepted and layout in (None, name)]
    if not fitting:
        wanted = ' or '.join(map(str, accepted))
        raise _BadArchive(
            f"{path}: '{key}' has shape {shape}, expected {wanted} channels, last or second"
            f'{f" ({layout})" if layout else ""}; is this archive made for another data set?'
        )
    if len(fitting) == 2 and prod(shape[1:]) != 1:
        raise _BadArchive(f"{path}: '{key}' has shape {shape}, which may be NHWC or NCHW; say which with layout=")
    return (0, 3, 1, 2) if fitting[0] == 'NHWC' else (0, 1, 2, 3)


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a member, from its first bytes; makes sure that the member is as long as they say."""
    info = archive.getinfo(f'{key}.npy')
    with _naming(path, key), archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise _BadArchive(f"{path}: '{key}' is in .npy format {version}, expected (1, 0) or (2, 0); save it anew")
        start = file.tell()
    if dtype.hasobject:
        raise _BadArchive(
            f"{path}: '{key}' is of dtype {dtype}: pickled objects can execute code and are not read; save plain arrays"
        )
    held, promised = info.file_size - start, prod(shape) * dtype.itemsize
    if held != promised:
        raise _BadArchive(f"{path}: '{key}' holds {held} bytes but its header promises {promised}; get the file again")
    return shape, dtype


def _read(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with _naming(path, key), archive.open(f'{key}.npy') as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _naming(path: Path, key: str) -> Iterator[None]:
    """Tell what member could not be read; the libraries' messages do not."""
    try:
        yield
    except _BadArchive:
        raise
    except _BROKEN as error:
        raise _BadArchive(f"{path}: '{key}' cannot be read ({_first_line(error)}); get the file again") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
