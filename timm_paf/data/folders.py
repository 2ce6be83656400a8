"""Image files in a sub-folder for each class, decoded when they are asked for."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.utils.misc import natural_key
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from timm_paf.data.errors import BadArchive, DataChanged, first_line
from timm_paf.data.report import SampleReport, sample_indices

_SAMPLE = 1024  # files whose headers are read on opening
_GRAY = ('1', 'L', 'LA')
_COLOUR = (*_GRAY, 'RGB', 'RGBA', 'P', 'CMYK', 'YCbCr')
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


class FolderImages:
    """Image files in class folders as a source: `take` decodes the files asked for.

    Classes are the sub-folders. If all their names are numbers, a name is the class number; otherwise there are as many
    as classes and they count in natural order (timm's, so `n2` comes before `n10`). Inside a class, files count in
    natural order; what does not end like an image is left out, and so is what begins with a dot. All images have one
    size. Gray images become RGB where `channels` is 3. Names are kept in one buffer, 20 bytes or so an image.

    Args:
        root: the folder.
        num_classes: number of classes K.
        channels: 1 or 3; None takes what the first image has.
        name: short name for messages, the folder's if None.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no images, the folders do not fit the classes, or the sample on opening (the headers of
            1024 files at most) has images of another size or mode.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, num_classes: int, channels: int | None = None, name: str | None = None,
    ) -> None:
        self.root, self.num_classes = Path(root), num_classes
        self.name = name if name is not None else self.root.name
        if channels not in (None, 1, 3):
            raise ValueError(f'got channels={channels} for the images in {root}, expected 1 or 3')
        if not self.root.is_dir():
            raise FileNotFoundError(f'{root}: no such folder; check the path')
        self._folders = _class_folders(self.root, num_classes)
        self._opened_ns = time.time_ns()
        names = [_image_names(folder) for folder, _ in self._folders]
        counts = [len(part) for part in names]
        if not sum(counts):
            raise BadArchive(f'{root}: not a readable image folder, its sub-folders hold no images; check the path')
        encoded = [os.fsencode(file) for part in names for file in part]
        self._names = b''.join(encoded)
        self._ends = np.cumsum([len(file) for file in encoded])
        self._folder_ends = np.cumsum(counts)
        self._labels = np.array([label for _, label in self._folders])
        self.image_shape = self._shape(channels)
        self.report = self._look()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ends)

    @property
    def soft(self) -> bool:
        """Whether labels are probabilities: never."""
        return False

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images; no image is read."""
        counts = np.diff(self._folder_ends, prepend=0)
        return torch.from_numpy(np.repeat(self._labels, counts).astype(np.int64))

    def path(self, index: int) -> Path:
        """The file of one image."""
        start = int(self._ends[index - 1]) if index else 0
        folder, _ = self._folders[int(np.searchsorted(self._folder_ends, index, side='right'))]
        return folder / os.fsdecode(self._names[start:int(self._ends[index])])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Decode images and look up labels at some indices.

        Args:
            indices: (B,) int64 in 0..N-1, any device.

        Returns:
            Images (B, C, H, W) uint8 and labels (B,) int64 on the CPU.

        Raises:
            IndexError: if an index is outside 0..N-1.
            DataChanged: if a file is gone, was changed since opening, cannot be decoded or is of another size; it is
                named.
        """
        wanted = indices.cpu().numpy().astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f'{self.name}: index outside 0..{len(self) - 1}')
        channels, height, width = self.image_shape
        pixels = np.empty((len(wanted), height, width, channels), np.uint8)
        for place, index in enumerate(wanted.tolist()):
            path = self.path(index)
            try:
                with open(path, 'rb') as file:
                    # the time of the last change of a file's entry: a file moved into the place of another has a new
                    # one. One time for all, since a stamp for each of 100 million files would have to be kept.
                    if os.fstat(file.fileno()).st_ctime_ns > self._opened_ns:
                        raise DataChanged(
                            f'{path}: changed since its folder was opened; leave data alone while a run uses them')
                    pixels[place] = self._decoded(path, file)
            except _UNREADABLE as error:
                raise DataChanged(f'{path}: cannot be decoded ({_reason(error)}); replace or remove it') from error
        labels = self._labels[np.searchsorted(self._folder_ends, wanted, side='right')]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))

    def _decoded(self, path: Path, file: BinaryIO) -> np.ndarray:
        with Image.open(file) as image:
            if fault := self._fault(path, image):
                raise DataChanged(fault)
            channels, height, width = self.image_shape
            return np.asarray(image.convert('RGB' if channels == 3 else 'L')).reshape(height, width, channels)

    def _shape(self, channels: int | None) -> tuple[int, int, int]:
        path = self.path(0)
        try:
            with Image.open(path) as image:
                return channels or (1 if image.mode in _GRAY else 3), image.height, image.width
        except _UNREADABLE as error:
            raise BadArchive(f'{path}: not a readable image ({_reason(error)}); replace or remove it') from error

    def _fault(self, path: Path, image: Image.Image) -> str | None:
        """What is wrong with an image whose header was read."""
        channels, height, width = self.image_shape
        if image.size != (width, height):
            return (
                f'{path}: is {image.height}x{image.width} pixels, but {self.path(0).name} is {height}x{width} (height, '
                f'width); all images need one size, resize them'
            )
        if image.mode not in (_GRAY if channels == 1 else _COLOUR):
            return f'{path}: is of mode {image.mode}, expected 8-bit {"gray" if channels == 1 else "RGB"}; convert it'
        return None

    def _look(self) -> SampleReport:
        for index in sample_indices(len(self), _SAMPLE).tolist():
            path = self.path(index)
            try:
                with Image.open(path) as image:
                    fault = self._fault(path, image)
            except _UNREADABLE as error:
                raise BadArchive(f'{path}: not a readable image ({_reason(error)}); replace or remove it') from error
            if fault:
                raise BadArchive(fault)
        counts = np.zeros(self.num_classes, np.int64)
        np.add.at(counts, self._labels, np.diff(self._folder_ends, prepend=0))
        return SampleReport(len(self), self.image_shape, 'uint8', 'folder', None, len(self), tuple(counts.tolist()))


def _reason(error: BaseException) -> str:
    """PIL's messages name the file once more; ours does already."""
    return getattr(error, 'strerror', None) or (
        'not an image' if isinstance(error, UnidentifiedImageError) else first_line(error))


def _class_folders(root: Path, num_classes: int) -> list[tuple[Path, int]]:
    names = sorted(_visible(root, folders=True), key=natural_key)
    if not names:
        raise BadArchive(
            f'{root}: not a readable image folder, it has no sub-folders (one a class), .npz parts or images.npy; '
            f'check the path'
        )
    if all(name.isascii() and name.isdigit() for name in names):
        labels = [int(name) for name in names]
        if max(labels) >= num_classes or len(set(labels)) < len(labels):
            raise BadArchive(
                f'{root}: has class folders {names[0]} to {names[-1]}, expected each number from 0 to '
                f'{num_classes - 1} at most once; is this made for another data set?'
            )
    elif len(names) == num_classes:
        labels = list(range(num_classes))
    else:
        raise BadArchive(
            f'{root}: has {len(names)} class folders ({", ".join(names[:3])} …), expected {num_classes}; without all '
            f'of them class numbers cannot be told, unless the folders are named 0 to {num_classes - 1}'
        )
    return [(root / name, label) for name, label in zip(names, labels, strict=True)]


def _image_names(folder: Path) -> list[str]:
    files = (name for name in _visible(folder, folders=False) if name.lower().endswith(IMG_EXTENSIONS))
    return sorted(files, key=natural_key)


def _visible(folder: Path, *, folders: bool) -> Iterable[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() == folders and not entry.name.startswith('.')]
