"""Image files in one sub-folder per class, decoded by `take`."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.utils.misc import natural_key
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from timm_paf.data.arrays import checked_indices
from timm_paf.data.errors import UNDECODABLE, BadArchive, DataChanged, errors_on_opening, first_line
from timm_paf.data.report import SampleReport, sample_indices

_SAMPLE = 1024  # files whose headers are read on opening
_GRAY = ('1', 'L', 'LA')
_COLOUR = (*_GRAY, 'RGB', 'RGBA', 'P', 'CMYK', 'YCbCr')


class FolderImages:
    """Image files in class folders as a source. All images have one size.

    Classes are the sub-folders, numbered in natural order (`n2` before `n10`, as in timm), and have their names. Within
    a class, files are in natural order. Files that are not images and names that start with a dot are ignored. Gray
    images become RGB if `channels` is 3; None is 1 or 3 as in the first image. Names take about 20 bytes of memory per
    image.

    Raises FileNotFoundError if there is no such folder, ValueError if there are no images, the folders do not match the
    classes, or the sample on opening (the headers of up to 1024 files) has images of another size or mode.
    """

    soft = False

    def __init__(self, root: str | os.PathLike[str], *, channels: int | None = None) -> None:
        self.root, self.name = Path(root), Path(root).name
        if channels not in (None, 1, 3):
            raise ValueError(f'got channels={channels} for the images in {root}, expected 1 or 3')
        if not self.root.is_dir():
            raise FileNotFoundError(f'{root}: no such folder; check the path')
        self._folders = _names(self.root, folders=True)
        self._opened_ns = time.time_ns()
        files = [
            [file for file in _names(self.root / folder, folders=False) if file.lower().endswith(IMG_EXTENSIONS)]
            for folder in self._folders]
        if not any(files):
            raise BadArchive(
                f'{root} holds no images; expected one sub-folder with image files per class, or .npz files, or '
                f'images.npy; check the path')
        self._names = np.array([os.fsencode(file) for part in files for file in part])
        self._folder_numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(part) for part in files])
        self.class_names, self.num_classes = tuple(self._folders), len(self._folders)
        with errors_on_opening():
            with self._open(0) as image:
                self.image_shape = channels or (1 if image.mode in _GRAY else 3), image.height, image.width
            for index in sample_indices(len(self), _SAMPLE).tolist():
                with self._open(index) as image:
                    self._check(index, image)
        counts = tuple(np.bincount(self._folder_numbers, minlength=self.num_classes).tolist())
        self.report = SampleReport(len(self), self.image_shape, 'uint8', 'folder', len(self), counts)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images; reads no image."""
        return torch.from_numpy(self._folder_numbers.astype(np.int64))

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.root / self._folders[self._folder_numbers[index]] / os.fsdecode(self._names[index])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Decode images (B, C, H, W) uint8, with labels (B,) int64, on the CPU, or raise `DataChanged`."""
        wanted = checked_indices(indices, self).numpy()
        channels, height, width = self.image_shape
        pixels = np.empty((len(wanted), height, width, channels), np.uint8)
        for row, index in zip(pixels, wanted.tolist(), strict=True):
            with self._open(index) as image:
                self._check(index, image)
                row[:] = np.asarray(image.convert('RGB' if channels == 3 else 'L')).reshape(row.shape)
        labels = torch.from_numpy(self._folder_numbers[wanted].astype(np.int64))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels

    @contextmanager
    def _open(self, index: int) -> Iterator[Image.Image]:
        path = self.path(index)
        try:
            with open(path, 'rb') as file:
                # One time for all files, since one stamp per file would take memory. The time of the last status
                # change also shows that another file was moved here.
                if os.fstat(file.fileno()).st_ctime_ns > self._opened_ns:
                    raise DataChanged(f'{path}: changed since its folder was opened; do not modify data during a run')
                with Image.open(file) as image:
                    yield image
        except DataChanged:
            raise
        except UNDECODABLE as error:
            reason = getattr(error, 'strerror', None) or first_line(error)
            if isinstance(error, UnidentifiedImageError):
                reason = 'not an image'
            raise DataChanged(f'{path}: cannot be decoded ({reason}); replace or remove it') from error

    def _check(self, index: int, image: Image.Image) -> None:
        """Raise `DataChanged` if the header of an image does not match."""
        channels, height, width = self.image_shape
        if image.size != (width, height):
            raise DataChanged(
                f'{self.path(index)}: is {image.height}x{image.width} pixels, but {self.path(0).name} is '
                f'{height}x{width} (height, width); all images need one size, resize them')
        if image.mode not in (_GRAY if channels == 1 else _COLOUR):
            raise DataChanged(
                f'{self.path(index)}: is of mode {image.mode}, expected 8-bit {"gray" if channels == 1 else "RGB"}; '
                f'convert it')


def _names(folder: Path, *, folders: bool) -> list[str]:
    """Names of sub-folders or files in natural order, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() == folders and not entry.name.startswith('.')]
    return sorted(names, key=lambda name: (natural_key(name), name))
