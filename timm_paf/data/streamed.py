"""Images of a stream, which can only be read from front to back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from timm_paf.data.arrays import LabelledImages, collect
from timm_paf.data.classes import names_of_classes
from timm_paf.data.decoded import Decoding, Key, Plan, to_pixels, wrong_size
from timm_paf.data.errors import UNDECODABLE, DataChanged
from timm_paf.data.folders import seen_size
from timm_paf.data.order import derive_seed

READ_TOGETHER = 16  # images read at a time; each worker rounds its share of a pass up to a multiple of it
_FIRST = 64  # images whose size is looked at


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
        decoding: How images are decoded; see `fitted`.
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
        """Number of images per pass, of all processes; timm's own length depends on the number of workers."""
        return getattr(getattr(self.dataset, 'reader', None), 'num_samples', None) or len(self.dataset)

    def fitted(self, dataset: Any, like: 'StreamedImages | None' = None) -> 'StreamedImages':
        """The same source, with settings for the sizes of the first images of `dataset`, another one of the same split.

        Raises ValueError if they have another size than those of `like`, which keep theirs.
        """
        dataset.transform = None
        sizes = {seen_size(image) for image, _ in islice(dataset, _FIRST)}
        decoding, needed = self.decoding.fitted(sizes, None if like is None else like.decoding)
        if needed is not None and (wrong := sizes - {needed}):
            raise ValueError(f'{self.name}: an image cannot be used: {wrong_size(wrong.pop(), needed)}')
        return replace(self, decoding=decoding)

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
        """All images of one pass in memory, as uint8, decoded for evaluation."""
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
        # the loader has set another one
        self.dataset.transform = partial(
            to_pixels, image_shape=self.image_shape, transform=self.decoding.transform(is_training=seed is not None))
        if seed is not None:
            self.dataset.set_epoch(seed)
        labels, batches = None, iter(loader)
        while True:
            try:
                images, labels = next(batches)
            except StopIteration:
                break
            except UNDECODABLE as error:  # from a worker, it comes with a page of traceback
                reason = (str(error).strip().splitlines() or [''])[-1]
                raise DataChanged(f'{self.name}: an image or its label cannot be read ({reason}); remove it') from error
            wrong = (labels < 0) | (labels >= self.num_classes)
            if wrong.any():
                raise DataChanged(
                    f'{self.name}: label {int(labels[wrong][0])}, expected 0 to {self.num_classes - 1}; correct '
                    f'num_classes')
            yield images, labels
        if labels is None:
            raise DataChanged(f'{self.name}: no images; check the name of the split, and that the files exist')
