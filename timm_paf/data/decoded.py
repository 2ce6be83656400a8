"""Images that are decoded during training: data sets of `timm.data.create_dataset` as image sources."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_paf.data.arrays import LabelledImages, collect
from timm_paf.data.classes import names_of_classes
from timm_paf.data.errors import UNDECODABLE, DataChanged, first_line
from timm_paf.data.order import derive_seed

READ_TOGETHER = 16  # images of a stream read at a time; each worker rounds its share of a pass up to a multiple of it
_MODES = {1: 'L', 3: 'RGB'}

Plan = Callable[[int], Tensor]
Key = tuple[int | str, ...]
Transform = Callable[[Image.Image], Any]  # to a tensor or an array: timm's releases differ


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings to decode images to one size.

    Args:
        channels: 1 or 3; images are converted.
        size: Height and width of the result in pixels.
        train_crop_mode: Crop of training images: 'rrc' (random resized crop), 'rkrc' or 'rkrr' as in timm, or 'resize'
            as in evaluation. Other augmentation runs on the device.
        crop_pct: For evaluation, images are resized to size / crop_pct, and the centre is cropped; above 0 to 1.
        workers: Number of processes that decode.

    Raises:
        ValueError: If a setting is out of range.
    """

    channels: int = 3
    size: int = 224
    train_crop_mode: str = 'rrc'
    crop_pct: float = 0.875
    workers: int = 4

    def __post_init__(self) -> None:
        if self.channels not in _MODES or self.size < 1 or self.workers < 0 or not 0 < self.crop_pct <= 1:
            raise ValueError(
                f'got channels={self.channels!r}, size={self.size!r}, workers={self.workers!r}, '
                f'crop_pct={self.crop_pct!r}, expected channels 1 or 3, size >= 1, workers >= 0 and crop_pct above 0 '
                f'to 1')

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a decoded image."""
        return self.channels, self.size, self.size

    @property
    def mode(self) -> str:
        """Pillow's name of the colour space."""
        return _MODES[self.channels]

    def transform(self, *, is_training: bool) -> Transform:
        """The transform of timm from an image to uint8 pixels (C, H, W)."""
        from timm.data import create_transform

        settings: dict[str, Any] = {'is_training': False, 'crop_pct': self.crop_pct}
        if is_training and self.train_crop_mode != 'resize':
            settings = {
                'is_training': True, 'train_crop_mode': self.train_crop_mode, 'hflip': 0., 'color_jitter': None}
        return create_transform(
            self.image_shape, mean=(0.,) * self.channels, std=(1.,) * self.channels, use_prefetcher=True, **settings)


@dataclass(eq=False)
class DecodedImages:
    """A map-style data set of timm or torchvision as an image source.

    `take` decodes images for evaluation in this process. `prefetch` decodes batches for training in worker processes.
    The random crop of an image depends only on its index and the key given to `prefetch`. timm's data sets replace an
    image that cannot be read by another one. Here it is an error.

    Args:
        dataset: Data set from `timm.data.create_dataset`.
        name: Short name for messages.
        num_classes: Number of classes.
        labels: (N,) int64, of all images.
        decoding: How images are decoded.
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

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, decoded for evaluation, and labels (B,) int64, or `DataChanged`."""
        return _unwrapped(_Steps(self, lambda _: indices, 1, (), self.decoding.transform(is_training=False))[0])

    def subset(self, indices: Tensor, *, name: str) -> 'DecodedImages':
        """A source of the images at `indices` (M,) int64; reads nothing."""
        return replace(self, name=name, labels=self.labels[indices], indices=self.places[indices])

    def loaded(self, *, name: str) -> LabelledImages:
        """All images in memory, decoded for evaluation."""
        chunks = torch.arange(len(self)).split(64)
        batches = self.prefetch(chunks.__getitem__, len(chunks), key=(), is_training=False)
        return collect(batches, num_classes=self.num_classes, name=name, class_names=self.class_names)

    def prefetch(
        self, plan: Plan, steps: int, *, key: Key, is_training: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images, decoded in advance by worker processes; raises `DataChanged` if one cannot be read.

        `plan` is sent to the workers; it gives the indices (B,) int64 of batch 0..steps-1. `key` is that of the random
        crops.
        """
        batches = _Steps(self, plan, steps, key, self.decoding.transform(is_training=is_training))
        # a generator of its own, since the seeds of the workers would come from the global one
        yield from map(_unwrapped, DataLoader(
            batches, batch_size=None, num_workers=self.decoding.workers, generator=torch.Generator()))


@dataclass(eq=False)
class _Steps(Dataset):
    """A data set whose items are batches, so that a worker decodes one batch at a time."""

    source: DecodedImages
    plan: Plan
    steps: int
    key: Key
    transform: Transform

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        source, indices = self.source, self.plan(step)
        images = torch.empty((len(indices), *source.image_shape), dtype=torch.uint8)
        for row, index in enumerate(source.places[indices].tolist()):
            with _seeded(derive_seed(*self.key, index)):
                try:
                    images[row] = torch.as_tensor(self.transform(self._image(index)))
                except UNDECODABLE as error:
                    # returned, since an error from another process arrives with a page of traceback
                    return f'{self._where(index)}: the image cannot be read ({first_line(error)})'
        return images, source.labels[indices]

    def _image(self, index: int) -> Image.Image:
        # timm's readers give open files; torchvision's data sets give images
        dataset, mode = self.source.dataset, self.source.decoding.mode
        if not hasattr(dataset, 'reader'):
            return dataset[index][0].convert(mode)
        with dataset.reader[index][0] as file:
            return Image.open(file).convert(mode)

    def _where(self, index: int) -> str:
        try:
            return self.source.dataset.filename(index, absolute=True)
        except Exception:  # torchvision's data sets and some of timm's readers have no names
            return f'{self.source.name}, image {index}'


@dataclass(eq=False)
class StreamedImages:
    """An iterable data set (WebDataset, Hugging Face streaming, TFDS) as training images.

    It can only be read from front to back, so `prefetch` counts the indices and gives images in the order of the data
    set. Batches have the exact number of images. But an epoch may repeat or miss images, the order depends on the
    number of workers, and a run resumed within an epoch starts a new pass. Under torch.distributed, the data set gives
    each process its share.

    Args:
        dataset: Iterable data set from `timm.data.create_dataset`.
        name: Short name for messages.
        num_classes: Number of classes.
        decoding: How images are decoded.
    """

    dataset: Any
    name: str
    num_classes: int
    decoding: Decoding

    def __post_init__(self) -> None:
        self.image_shape = self.decoding.image_shape
        names = names_of_classes(getattr(getattr(self.dataset, 'reader', None), 'class_to_idx', None))
        self.class_names = names if names and len(names) == self.num_classes else None

    def __len__(self) -> int:
        """Number of images per pass, as the data set reports it."""
        return len(self.dataset)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Not available; raises ValueError."""
        raise ValueError(f'{self.name}: this data set can only be read from front to back, not at an index')

    def prefetch(self, plan: Plan, steps: int, *, key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches with as many images as `plan` gives indices, as in `DecodedImages`; passes repeat as needed."""
        pool = (batch for number in count() for batch in self._one_pass(derive_seed(*key, number) % 2**31))
        images, labels = next(pool)
        for step in range(steps):
            wanted = len(plan(step))
            while len(images) < wanted:
                more, more_labels = next(pool)
                images, labels = torch.cat([images, more]), torch.cat([labels, more_labels])
            yield images[:wanted], labels[:wanted]
            images, labels = images[wanted:], labels[wanted:]

    def loaded(self, *, name: str) -> LabelledImages:
        """All images of one pass in memory, decoded for evaluation."""
        return collect(self._one_pass(), num_classes=self.num_classes, name=name, class_names=self.class_names)

    def _one_pass(self, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one pass over the data set, for training with this seed, or for evaluation."""
        from timm.data import create_loader
        from timm.data.loader import fast_collate

        # timm's prefetcher returns normalised floats; the loader inside it returns uint8
        loader = create_loader(
            self.dataset, self.image_shape, READ_TOGETHER, mean=(0.,) * self.decoding.channels,
            std=(1.,) * self.decoding.channels, num_workers=self.decoding.workers, collate_fn=fast_collate,
            device=torch.device('cpu'), persistent_workers=False).loader
        loader.generator = torch.Generator().manual_seed(seed or 0)
        self.dataset.transform = self.decoding.transform(is_training=seed is not None)  # the loader has set another one
        if seed is not None:
            self.dataset.set_epoch(seed)
        labels = None
        for images, labels in loader:
            wrong = (labels < 0) | (labels >= self.num_classes)
            if wrong.any():
                raise DataChanged(
                    f'{self.name}: label {int(labels[wrong][0])}, expected 0 to {self.num_classes - 1}; correct '
                    f'num_classes')
            yield images, labels
        if labels is None:
            raise DataChanged(f'{self.name}: no images; check the name of the split, and that the files exist')


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
