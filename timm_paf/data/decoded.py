"""Images that are decoded during training: data sets of `timm.data.create_dataset` as image sources."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from timm_paf.data.arrays import LabelledImages, collect
from timm_paf.data.errors import UNDECODABLE, DataChanged, first_line
from timm_paf.data.order import derive_seed

READ_TOGETHER = 16  # images of a stream read at a time; each worker rounds its share of a pass up to a multiple of it
_MODES = {1: 'L', 3: 'RGB'}

Plan = Callable[[int], Tensor]
Transform = Callable[[Image.Image], Any]  # to a tensor or an array: timm's releases differ


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How images are decoded to one size.

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
        if self.channels not in _MODES:
            raise ValueError(f'got channels={self.channels!r}, expected 1 or 3')
        if self.size < 1 or self.workers < 0 or not 0 < self.crop_pct <= 1:
            raise ValueError(
                f'got size={self.size!r}, workers={self.workers!r}, crop_pct={self.crop_pct!r}, expected size >= 1, '
                f'workers >= 0 and crop_pct above 0 to 1'
            )

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

        settings: dict[str, Any] = {'mean': (0.,) * self.channels, 'std': (1.,) * self.channels, 'use_prefetcher': True}
        if is_training and self.train_crop_mode != 'resize':
            settings.update(is_training=True, train_crop_mode=self.train_crop_mode, hflip=0., color_jitter=None)
        else:
            settings.update(is_training=False, crop_pct=self.crop_pct)
        return create_transform(self.image_shape, **settings)


class DecodedImages:
    """A map-style data set of timm or torchvision as an image source.

    `take` decodes images for evaluation in this process. `prefetch` decodes batches for training in the worker
    processes of timm's `create_loader`. The random crop of an image depends only on its index and the key given to
    `prefetch`, not on the number of workers or the process.

    timm's data sets replace an image that cannot be read by another one. Here it is an error.

    Args:
        dataset: Data set from `timm.data.create_dataset`.
        name: Short name for messages.
        num_classes: Number of classes.
        labels: (N,) int64, of all images.
        decoding: How images are decoded.
        indices: (N,) int64: the images of the data set that belong to this source; all if None.

    Raises:
        ValueError: If a label is out of range.
    """

    def __init__(
        self, dataset: Any, *, name: str, num_classes: int, labels: Tensor, decoding: Decoding,
        indices: Tensor | None = None,
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.num_classes = num_classes
        self.labels = labels
        self.decoding = decoding
        self.indices = torch.arange(len(labels)) if indices is None else indices
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            raise ValueError(
                f'{name}: has labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}; '
                f'correct num_classes'
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a decoded image."""
        return self.decoding.image_shape

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, decoded for evaluation, and labels (B,) int64.

        Raises:
            DataChanged: If an image cannot be read.
        """
        steps = _Steps(self, plan=lambda _: indices, steps=1, key=())
        steps.transform = self.decoding.transform(is_training=False)
        return _unwrapped(steps[0])

    def subset(self, indices: Tensor, *, name: str) -> 'DecodedImages':
        """A source of the images at `indices` (M,) int64; reads nothing."""
        return DecodedImages(
            self.dataset, name=name, num_classes=self.num_classes, labels=self.labels[indices], decoding=self.decoding,
            indices=self.indices[indices])

    def prefetch(self, plan: Plan, steps: int, *, key: tuple[int | str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images, decoded in advance by worker processes.

        Args:
            plan: Function from batch number, 0..steps-1, to indices (B,) int64; it is sent to the workers.
            steps: Number of batches.
            key: Key of the random crops.

        Raises:
            DataChanged: If an image cannot be read.
        """
        batches = _Steps(self, plan=plan, steps=steps, key=key)
        loader = _create_loader(batches, self.decoding)
        batches.transform = self.decoding.transform(is_training=True)  # the loader has set another one
        for batch in loader:
            yield _unwrapped(batch)

    def loaded(self, *, name: str) -> LabelledImages:
        """All images in memory, decoded for evaluation."""
        chunks = torch.arange(len(self)).split(64)
        batches = _Steps(self, plan=chunks.__getitem__, steps=len(chunks), key=())
        return collect(
            map(_unwrapped, _create_loader(batches, self.decoding)), num_classes=self.num_classes, name=name)


class _Steps(Dataset):
    """A data set whose items are batches, so that a worker decodes one batch at a time."""

    def __init__(self, source: DecodedImages, *, plan: Plan, steps: int, key: tuple[int | str, ...]) -> None:
        self.source = source
        self.plan = plan
        self.steps = steps
        self.key = key
        self.transform: Transform | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        source = self.source
        indices = self.plan(step)
        images = torch.empty((len(indices), *source.image_shape), dtype=torch.uint8)
        with _own_randomness():
            for row, index in enumerate(source.indices[indices].tolist()):
                _seed_everything(derive_seed(*self.key, index))
                try:
                    images[row] = torch.as_tensor(self.transform(self._image(index)))  # type: ignore[misc]
                except UNDECODABLE as error:
                    # returned, since an error from another process arrives with a page of traceback
                    return f'{_where(source, index)}: the image cannot be read ({first_line(error)})'
        return images, source.labels[indices]

    def _image(self, index: int) -> Image.Image:
        # timm's readers give open files; torchvision's data sets give images
        reader = getattr(self.source.dataset, 'reader', None)
        if reader is None:
            return self.source.dataset[index][0].convert(self.source.decoding.mode)
        with reader[index][0] as file:
            return Image.open(file).convert(self.source.decoding.mode)


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

    def __init__(self, dataset: Any, *, name: str, num_classes: int, decoding: Decoding) -> None:
        self.dataset = dataset
        self.name = name
        self.num_classes = num_classes
        self.decoding = decoding

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a decoded image."""
        return self.decoding.image_shape

    def __len__(self) -> int:
        """Number of images per pass, as the data set reports it."""
        return len(self.dataset)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Not available.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f'{self.name}: this data set can only be read from front to back, not at an index')

    def prefetch(self, plan: Plan, steps: int, *, key: tuple[int | str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches with as many images as `plan` gives indices, as in `DecodedImages`; passes repeat as needed."""
        pool = self._endless(key)
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
        parts = list(self._one_pass(is_training=False))
        if not parts:
            raise ValueError(f'{self.name}: no images; check the name of the split')
        return collect(parts, num_classes=self.num_classes, name=name)

    def _endless(self, key: tuple[int | str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        number = 0
        while True:
            seed = derive_seed(*key, number) % 2**31
            self.dataset.set_epoch(seed)
            empty = True
            for batch in self._one_pass(is_training=True, seed=seed):
                empty = False
                yield batch
            if empty:
                raise DataChanged(f'{self.name}: no images; check that the files still exist')
            number += 1

    def _one_pass(self, *, is_training: bool, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        from timm.data.loader import fast_collate

        loader = _create_loader(
            self.dataset, self.decoding, seed=seed, batch_size=READ_TOGETHER, collate_fn=fast_collate)
        self.dataset.transform = self.decoding.transform(is_training=is_training)
        for images, labels in loader:
            wrong = (labels < 0) | (labels >= self.num_classes)
            if wrong.any():
                raise DataChanged(
                    f'{self.name}: label {int(labels[wrong][0])}, expected 0 to {self.num_classes - 1}; correct '
                    f'num_classes')
            yield images, labels


def _only(items: list[Any]) -> Any:
    """The single item, which is a batch."""
    return items[0]


def _create_loader(
    dataset: Any, decoding: Decoding, *, seed: int = 0, batch_size: int = 1, collate_fn: Callable[..., Any] = _only,
) -> Any:
    from timm.data import create_loader

    # timm's prefetcher returns normalised floats; the loader inside it returns uint8
    loader = create_loader(
        dataset, decoding.image_shape, batch_size, is_training=False, mean=(0.,) * decoding.channels,
        std=(1.,) * decoding.channels, num_workers=decoding.workers, collate_fn=collate_fn,
        device=torch.device('cpu'), persistent_workers=False).loader
    loader.generator = torch.Generator().manual_seed(seed)  # otherwise it draws the workers' seeds from the global one
    return loader


def _unwrapped(batch: tuple[Tensor, Tensor] | str) -> tuple[Tensor, Tensor]:
    if isinstance(batch, str):
        raise DataChanged(batch)
    return batch


def _where(source: DecodedImages, index: int) -> str:
    try:
        return source.dataset.filename(index, absolute=True)
    except Exception:
        return f'{source.name}, image {index}'


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Restore the global random states afterwards: without workers, this is the training process."""
    state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def _seed_everything(seed: int) -> None:
    # timm's transforms use all three
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
