"""Images that are decoded while training: what `timm.data.create_dataset` opens, as sources for mixed batches."""

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

from timm_paf.data.arrays import LabelledImages
from timm_paf.data.errors import DataChanged
from timm_paf.data.order import derive_seed

READ_TOGETHER = 16  # images of a stream; each worker of a loader rounds its share of a pass up to a multiple of it
_MODES = {1: 'L', 3: 'RGB'}
_UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)  # as Pillow raises them

Plan = Callable[[int], Tensor]
Transform = Callable[[Image.Image], Any]  # to a tensor or an array: timm's releases differ


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How stored images are brought to one size.

    Args:
        channels: 1 or 3; images are converted.
        size: height and width of the result in pixels.
        train_crop_mode: what training images go through: 'rrc' (random resized crop), 'rkrc' or 'rkrr' as in timm, or
            'resize' as in evaluation. Nothing else is done here: mirroring and the like happen on the device.
        crop_pct: in evaluation, images are resized to size / crop_pct and the middle is taken.
        workers: processes that decode.
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
        """(C, H, W) of the result."""
        return self.channels, self.size, self.size

    @property
    def mode(self) -> str:
        """Pillow's name of the colour space."""
        return _MODES[self.channels]

    def transform(self, *, is_training: bool) -> Transform:
        """Timm's transform from an image to uint8 pixels (C, H, W)."""
        from timm.data import create_transform

        mean, std = (0.,) * self.channels, (1.,) * self.channels
        if is_training and self.train_crop_mode != 'resize':
            return create_transform(
                self.image_shape, is_training=True, use_prefetcher=True, train_crop_mode=self.train_crop_mode,
                hflip=0., color_jitter=None, mean=mean, std=std)
        return create_transform(
            self.image_shape, is_training=False, use_prefetcher=True, crop_pct=self.crop_pct, mean=mean, std=std)


class DecodedImages:
    """A map-style data set of timm or torchvision as an image source.

    `take` decodes in this process, for evaluation; `ahead` decodes batches in worker processes behind timm's
    `create_loader`, for training. An image's random crop is a function of the key given to `ahead` and of its index, so
    it depends neither on the number of workers nor on which process takes it.

    timm's own data sets put another image in the place of one that can't be read. Here that is an error.

    Args:
        dataset: from `timm.data.create_dataset`.
        name: short name for messages.
        num_classes: number of classes.
        labels: (N,) int64, of every image.
        decoding: how images are decoded.
        indices: (N,) int64, which images of the data set these are; all if None.
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
        """(C, H, W) of every image once it is decoded."""
        return self.decoding.image_shape

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, decoded as for evaluation, and labels (B,) int64.

        Raises:
            DataChanged: if an image can't be read.
        """
        steps = _Steps(self, plan=lambda _: indices, steps=1, key=())
        steps.transform = self.decoding.transform(is_training=False)
        return _unwrapped(steps[0])

    def subset(self, indices: Tensor, *, name: str) -> 'DecodedImages':
        """The images at `indices` (M,) int64 as a set of their own; nothing is read."""
        return DecodedImages(
            self.dataset, name=name, num_classes=self.num_classes, labels=self.labels[indices], decoding=self.decoding,
            indices=self.indices[indices])

    def ahead(self, plan: Plan, steps: int, *, key: tuple[int | str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images, decoded by workers before they are asked for.

        Args:
            plan: gives the indices (B,) int64 of batch n, for n in 0..steps-1; it is sent to the workers.
            steps: number of batches.
            key: what random crops are a function of, together with an image's index.

        Raises:
            DataChanged: if an image can't be read.
        """
        batches = _Steps(self, plan=plan, steps=steps, key=key)
        loader = _create_loader(batches, self.decoding)
        batches.transform = self.decoding.transform(is_training=True)  # in place of the one that the loader has set
        for batch in loader:
            yield _unwrapped(batch)

    def loaded(self, *, name: str) -> LabelledImages:
        """All images in memory, decoded as for evaluation."""
        chunks = torch.arange(len(self)).split(64)
        batches = _Steps(self, plan=chunks.__getitem__, steps=len(chunks), key=())
        parts = [_unwrapped(batch) for batch in _create_loader(batches, self.decoding)]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return LabelledImages(images, labels, self.num_classes, name)


class _Steps(Dataset):
    """Whole batches as the items of a data set: a worker decodes one batch at a time."""

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
                except _UNREADABLE as error:
                    # told and not raised: an error that crosses processes arrives with a page of traceback
                    return f'{_where(source, index)}: the image cannot be read ({str(error).splitlines()[0]})'
        return images, source.labels[indices]

    def _image(self, index: int) -> Image.Image:
        # timm's readers give open files; torchvision's data sets give images
        reader = getattr(self.source.dataset, 'reader', None)
        if reader is None:
            return self.source.dataset[index][0].convert(self.source.decoding.mode)
        with reader[index][0] as file:
            return Image.open(file).convert(self.source.decoding.mode)


class StreamedImages:
    """A data set that can only be read from front to back (WebDataset, HF streaming, TFDS), as training images.

    Only `ahead` gives images, in the data set's own order; what it is asked for by index is just counted. So batches
    hold exactly as many of them as they should, but nothing makes sure that an epoch shows each image once, the order
    depends on the number of workers, and a run that is resumed within an epoch starts a new pass. Under
    torch.distributed the data set itself gives each process its share.

    Args:
        dataset: an iterable data set from `timm.data.create_dataset`.
        name: short name for messages.
        num_classes: number of classes.
        decoding: how images are decoded.
    """

    def __init__(self, dataset: Any, *, name: str, num_classes: int, decoding: Decoding) -> None:
        self.dataset = dataset
        self.name = name
        self.num_classes = num_classes
        self.decoding = decoding

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image once it is decoded."""
        return self.decoding.image_shape

    def __len__(self) -> int:
        """Number of images in a pass, as the data set tells it."""
        return len(self.dataset)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Not to be had.

        Raises:
            ValueError: always.
        """
        raise ValueError(f'{self.name}: this data set can only be read from front to back, not at an index')

    def ahead(self, plan: Plan, steps: int, *, key: tuple[int | str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """As many images in each batch as `plan` has indices for it; passes follow each other as needed."""
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
        """All images of one pass in memory, decoded as for evaluation."""
        parts = list(self._one_pass(is_training=False))
        if not parts:
            raise ValueError(f'{self.name}: no images; check the name of the split')
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return LabelledImages(images, labels, self.num_classes, name)

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
                raise DataChanged(f'{self.name}: no images; are the files still there?')
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
    """The one item that is a whole batch."""
    return items[0]


def _create_loader(
    dataset: Any, decoding: Decoding, *, seed: int = 0, batch_size: int = 1, collate_fn: Callable[..., Any] = _only,
) -> Any:
    from timm.data import create_loader

    # timm's prefetcher makes normalised floats; the loader inside it gives the uint8 that is wanted here
    loader = create_loader(
        dataset, decoding.image_shape, batch_size, is_training=False, mean=(0.,) * decoding.channels,
        std=(1.,) * decoding.channels, num_workers=decoding.workers, collate_fn=collate_fn,
        device=torch.device('cpu'), persistent_workers=False).loader
    loader.generator = torch.Generator().manual_seed(seed)  # or it would draw the workers' seeds from the global one
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
    """Leave the global random states as they are found: without workers this is the training process."""
    state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def _seed_everything(seed: int) -> None:
    # timm's transforms draw from all three
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
