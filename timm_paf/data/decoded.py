"""Images that are decoded when they are needed: image files, and the data sets of timm and torchvision."""

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_paf._versions import available_cores
from timm_paf.data.arrays import checked_indices
from timm_paf.data.errors import UNDECODABLE, DataChanged, errors_on_opening, first_line
from timm_paf.data.folders import ImageFolder, own_channels, seen_size, to_mode
from timm_paf.data.order import derive_seed
from timm_paf.data.report import SampleReport, sample_indices

_SAMPLE = 1024  # images whose headers are read on opening
_MODES = {1: 'L', 3: 'RGB'}
_SIZE, _CROP_PCT = 224, 0.875  # for images of different sizes, as in timm

Plan = Callable[[int], Tensor]
Key = tuple[int | str, ...]
Transform = Callable[[Image.Image], Any]  # to a tensor or an array: timm's releases differ


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings to decode images to one size. Images that all have one size keep it, unless a setting says otherwise.

    Args:
        channels: 1 or 3; images are converted.
        size: Height and width of the result in pixels, one number or two; None for the size that all images have, or
            224 if they differ.
        train_crop_mode: Crop of training images: 'rrc' (random resized crop), 'rkrc' or 'rkrr' as in timm, or 'resize'
            as in evaluation; None for 'rrc', or no crop if the images have this size. Other augmentation runs on the
            device.
        crop_pct: For evaluation, images are resized to size / crop_pct, and the centre is cropped; above 0 to 1. None
            for 0.875, or no change if the images have this size.
        workers: Number of processes that decode training images, and of threads that decode for evaluation; the number
            of cores, at most 4, by default.

    Raises:
        ValueError: If a setting is out of range.
    """

    channels: int = 3
    size: int | tuple[int, int] | None = None
    train_crop_mode: str | None = None
    crop_pct: float | None = None
    workers: int = field(default_factory=lambda: min(4, available_cores()))

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size or 1,) if self.size != 0 else (0,)
        if (self.channels not in _MODES or min(sizes) < 1 or self.workers < 0
                or (self.crop_pct is not None and not 0 < self.crop_pct <= 1)):
            raise ValueError(
                f'got channels={self.channels!r}, size={self.size!r}, workers={self.workers!r}, '
                f'crop_pct={self.crop_pct!r}, expected channels 1 or 3, size >= 1, workers >= 0 and crop_pct above 0 '
                f'to 1')

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a decoded image."""
        size = self.size or _SIZE
        return self.channels, *(size if isinstance(size, tuple) else (size, size))

    @property
    def mode(self) -> str:
        """Pillow's name of the colour space."""
        return _MODES[self.channels]

    def resolved(self, own: tuple[int, int] | None) -> 'Decoding':
        """The settings for images of one size (height, width), or None if their sizes differ."""
        decoding = replace(self, size=self.size or own or _SIZE)
        if decoding.image_shape[1:] == own:
            return replace(decoding, size=own)
        return replace(
            decoding, crop_pct=self.crop_pct or _CROP_PCT, train_crop_mode=self.train_crop_mode or 'rrc')

    def fitted(
        self, sizes: set[tuple[int, int]], like: 'Decoding | None' = None,
    ) -> tuple['Decoding', tuple[int, int] | None]:
        """The settings for images of these sizes, and the size that they need, if they must not be resized.

        `like` holds the fitted settings of the training images: if those keep their size, others need it as well.
        """
        own, decoding, needed = next(iter(sizes)) if len(sizes) == 1 else None, self, None
        if self.size is None and like is not None:
            size = like.image_shape[1:]
            decoding, needed = replace(self, size=size), size if like.crop_pct is None else None
        return decoding.resolved(own), needed

    def transform(self, *, is_training: bool) -> Transform | None:
        """The transform of timm from an image to uint8 pixels (C, H, W); None if images stay as they are."""
        from timm.data import create_transform

        settings: dict[str, Any] = {'is_training': False, 'crop_pct': self.crop_pct}
        if is_training and self.train_crop_mode not in (None, 'resize'):
            settings = {
                'is_training': True, 'train_crop_mode': self.train_crop_mode, 'hflip': 0., 'color_jitter': None}
        elif self.crop_pct is None:
            return None
        return create_transform(
            self.image_shape, mean=(0.,) * self.channels, std=(1.,) * self.channels, use_prefetcher=True, **settings)


@dataclass(eq=False)
class DecodedImages:
    """Image files, or a map-style data set of timm or torchvision, as an image source.

    `take` decodes images for evaluation, in threads. `prefetch` decodes batches for training in worker processes. The
    random crop of an image depends only on its index and the key given to `prefetch`. Every image is read by the rules
    of `timm_paf.data.folders.to_mode`. timm's data sets replace an image that cannot be read by another one. Here it is
    an error.

    Args:
        dataset: An `ImageFolder`, a data set from `timm.data.create_dataset`, or one of torchvision that gives images.
        name: Short name for messages.
        num_classes: Number of classes.
        labels: (N,) int64, of all images.
        decoding: How images are decoded; see `opened`.
        indices: (N,) int64: the images of the data set that belong to this source; all if None.
        class_names: Names of the classes, if they have names.

    Raises:
        ValueError: If a label is out of range.
    """

    dataset: Any
    name: str
    num_classes: int
    labels: Tensor
    decoding: Decoding
    indices: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    soft = False

    def __post_init__(self) -> None:
        self.image_shape = self.decoding.image_shape
        self.places = torch.arange(len(self.labels)) if self.indices is None else self.indices
        if len(self.labels) and (int(self.labels.min()) < 0 or int(self.labels.max()) >= self.num_classes):
            raise ValueError(
                f'{self.name}: has labels from {int(self.labels.min())} to {int(self.labels.max())}, expected 0 to '
                f'{self.num_classes - 1}; correct num_classes')

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def changes_images(self) -> bool:
        """Whether training images are cropped at random, so that one copy of each does not do."""
        return self.decoding.train_crop_mode not in (None, 'resize')

    @property
    def report(self) -> SampleReport:
        """Properties of the images."""
        counts = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return SampleReport(len(self), self.image_shape, 'uint8', 'folder', len(self), tuple(counts))

    def opened(self, like: 'DecodedImages | None' = None, *, one_size: bool = False) -> 'DecodedImages':
        """The same source, with settings that fit a sample of the images: the size that they all have, if one.

        Args:
            like: Opened source whose size the images get; if those images keep their size, these need it as well.
            one_size: Whether the images need one size in any case.

        Raises:
            ValueError: If an image of the sample cannot be read, or has a size that it must not have.
        """
        count = _SAMPLE if hasattr(getattr(self.dataset, 'reader', self.dataset), 'filename') else _SAMPLE // 16
        sizes: dict[tuple[int, int], int] = {}
        with errors_on_opening():
            for index in self.places[torch.from_numpy(sample_indices(len(self), count))].tolist():
                with _open(self.dataset, self.name, index) as image:
                    sizes.setdefault(seen_size(image), index)
        decoding, needed = self.decoding.fitted(set(sizes), None if like is None else like.decoding)
        needed = next(iter(sizes)) if one_size else needed
        if needed is not None and (wrong := [item for item in sizes.items() if item[0] != needed]):
            size, index = wrong[0]
            raise ValueError(f'{_where(self.dataset, self.name, index)}: {wrong_size(size, needed)}')
        return replace(self, decoding=decoding)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, decoded for evaluation, and labels (B,) int64, or `DataChanged`."""
        indices = checked_indices(indices, self)
        read = partial(self.pixels, transform=self.decoding.transform(is_training=False))
        images = torch.empty((len(indices), *self.image_shape), dtype=torch.uint8)
        with ThreadPoolExecutor(max(self.decoding.workers, 1)) as pool:  # Pillow decodes without holding the lock
            for row, pixels in enumerate(pool.map(read, self.places[indices].tolist())):
                images[row] = pixels
        return images, self.labels[indices]

    def subset(self, indices: Tensor, *, name: str) -> 'DecodedImages':
        """A source of the images at `indices` (M,) int64; reads nothing."""
        return replace(self, name=name, labels=self.labels[indices], indices=self.places[indices])

    def prefetch(self, plan: Plan, steps: int, *, key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images, decoded in advance by worker processes; `DataChanged` if one cannot be read.

        `plan` is sent to the workers; it gives the indices (B,) int64 of batch 0..steps-1. `key` is that of the random
        crops.
        """
        batches = _Steps(self, plan, steps, key, self.decoding.transform(is_training=True))
        # a generator of its own, since the seeds of the workers would come from the global one
        yield from map(_unwrapped, DataLoader(
            batches, batch_size=None, num_workers=self.decoding.workers, generator=torch.Generator()))

    def pixels(self, index: int, transform: Transform | None) -> Tensor:
        """Pixels (C, H, W) uint8 of one image of the data set."""
        with _open(self.dataset, self.name, index) as image:
            return to_pixels(image, self.image_shape, transform)


def folder_images(
    root: str | os.PathLike[str], *, decoding: Decoding | None = None, channels: int | None = None,
    name: str | None = None,
) -> DecodedImages:
    """Image files in class folders as a source, not opened yet; without `channels`, 1 or 3 as in the first image.

    Without `decoding`, they are decoded in this process.
    """
    dataset, name = ImageFolder(root), Path(root).name if name is None else name
    if decoding is None:
        if channels is None:
            with errors_on_opening(), _open(dataset, name, 0) as image:
                channels = own_channels(image)
        decoding = Decoding(channels=channels, workers=0)
    return DecodedImages(
        dataset, name, len(dataset.class_names), torch.from_numpy(dataset.labels), decoding,
        class_names=dataset.class_names)


def to_pixels(image: Image.Image, image_shape: tuple[int, int, int], transform: Transform | None) -> Tensor:
    """Pixels (C, H, W) uint8 of an image, which needs the right size if there is no transform."""
    channels, height, width = image_shape
    image = to_mode(image, channels)
    if transform is not None:
        return torch.as_tensor(transform(image))
    if image.size != (width, height):
        raise ValueError(wrong_size((image.height, image.width), (height, width)))
    return torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)


def wrong_size(size: tuple[int, int], needed: tuple[int, int]) -> str:
    """What to say about an image of this height and width."""
    return (
        f'it is {size[0]}x{size[1]} pixels, but others are {needed[0]}x{needed[1]} (height, width); resize it, or '
        f'give a size for all images (img_size)')


@contextmanager
def _open(dataset: Any, name: str, index: int) -> Iterator[Image.Image]:
    """One image of a data set, its header read; errors name the file."""
    try:
        reader = getattr(dataset, 'reader', dataset)
        file = reader[index][0]  # timm's readers give open files; torchvision's data sets give images
        if isinstance(file, Image.Image):
            yield file
        else:
            with file, Image.open(file) as image:
                yield image
    except UNDECODABLE as error:
        if isinstance(error, DataChanged):
            raise
        reason = 'not an image' if isinstance(error, UnidentifiedImageError) else (
            getattr(error, 'strerror', None) or first_line(error))
        raise DataChanged(
            f'{_where(dataset, name, index)}: the image cannot be read ({reason}); replace or remove it') from error


def _where(dataset: Any, name: str, index: int) -> str:
    try:
        return dataset.filename(index, absolute=True)
    except Exception:  # torchvision's data sets and some of timm's readers have no names
        return f'{name}, image {index}'


@dataclass(eq=False)
class _Steps(Dataset):
    """A data set whose items are batches, so that a worker decodes one batch at a time."""

    source: DecodedImages
    plan: Plan
    steps: int
    key: Key
    transform: Transform | None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        source, indices = self.source, self.plan(step)
        images = torch.empty((len(indices), *source.image_shape), dtype=torch.uint8)
        try:
            for row, index in enumerate(source.places[indices].tolist()):
                if source.changes_images:
                    with _seeded(derive_seed(*self.key, index)):
                        images[row] = source.pixels(index, self.transform)
                else:
                    images[row] = source.pixels(index, self.transform)
        except DataChanged as error:
            return str(error)  # returned, since an error from another process arrives with a page of traceback
        return images, source.labels[indices]


def _unwrapped(batch: tuple[Tensor, Tensor] | str) -> tuple[Tensor, Tensor]:
    if isinstance(batch, str):
        raise DataChanged(batch)
    return batch


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random generators that timm's transforms use, and restore them: this may be the training process."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
