"""Batches that hold real and synthetic images at a set share, in an order that can be entered anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, check_compatible, to_unit_range
from timm_paf.data.augment import Augment
from timm_paf.data.order import IndexPermutation, generator_for

_UNCHANGED = Augment()


@dataclass(frozen=True, eq=False)
class Batch:
    """One training batch; `x, y = batch` unpacks the part that training needs.

    Args:
        x: images (B, C, H, W), float32 in [0, 1], contiguous.
        y: labels (B,) int64.
        synthetic: (B,) bool, True where the image comes from the synthetic source.
    """

    x: Tensor
    y: Tensor
    synthetic: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        """x, then y."""
        return iter((self.x, self.y))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.x)


class MixedBatches:
    """Epochs of batches that hold exactly round(F * B) synthetic images each, shuffled with the real ones.

    An epoch is one pass over the real images, in a new random order. With R = B - round(F * B) real images a batch, it
    has ceil(N / R) steps for N real images. The last batch may hold fewer, r; it then takes round(r * round(F * B) / R)
    synthetic images, so that the shares stay as they are. If no real image is left in a batch (F = 1), an epoch is as
    long as if the N images were synthetic: N of them pass. Python's `round` decides, so 2.5 goes to 2; what came out is
    in `real_per_batch` and `synthetic_per_batch`.

    The synthetic images form one stream that goes on from epoch to epoch. It passes over all of them, each time in
    another pseudo-random order, and uses none a second time before all have been used once. No list of indices is kept
    for it (see `IndexPermutation`), so the set may be of any size and sorted in any way.

    All of it (which images, their places in the batch, their augmentation) is a function of (seed, epoch, step) and of
    the settings here: a run that goes on in the middle of an epoch sees the very batches that it would have seen, on
    any device.

    Args:
        real: the real images.
        synthetic: the synthetic images, of the same shape and classes; may be None if the fraction is 0.
        batch_size: B, at least 1.
        synthetic_fraction: F in [0, 1].
        seed: any integer.
        drop_last: leave out a last batch that is not full.
        real_augment: what to do to real images.
        synthetic_augment: what to do to synthetic images; nothing by default, as in the paper.
        device: where batches go. Images travel there in the dtype they are stored in.

    Raises:
        ValueError: if a setting is out of range, synthetic images are asked for but missing, the two sources differ in
            shape or classes, or there is not one full batch and `drop_last` leaves nothing.
    """

    def __init__(
        self,
        real: ImageSource,
        synthetic: ImageSource | None = None,
        *,
        batch_size: int,
        synthetic_fraction: float,
        seed: int,
        drop_last: bool = False,
        real_augment: Augment = _UNCHANGED,
        synthetic_augment: Augment = _UNCHANGED,
        device: torch.device | str = 'cpu',
    ) -> None:
        _check_settings(batch_size, synthetic_fraction, seed)
        if synthetic is None and synthetic_fraction > 0:
            raise ValueError(
                f'got synthetic_fraction={synthetic_fraction} without synthetic images; give some, or a fraction of 0'
            )
        if synthetic is not None:
            check_compatible(real, synthetic)
        self.real = real
        self.synthetic = synthetic
        self.batch_size = batch_size
        self.synthetic_per_batch = round(synthetic_fraction * batch_size)
        self.real_per_batch = batch_size - self.synthetic_per_batch
        self.seed = seed
        self.real_augment = real_augment
        self.synthetic_augment = synthetic_augment
        self.device = torch.device(device)
        # what an epoch counts: real images, or as many synthetic ones if a batch holds no real image
        self._counted_per_batch = self.real_per_batch or self.synthetic_per_batch
        full, rest = divmod(len(real), self._counted_per_batch)
        self._steps = full if drop_last or not rest else full + 1
        if not self._steps:
            raise ValueError(
                f'{real.name}: {len(real)} images do not fill one batch that takes {self._counted_per_batch} of them, '
                f'and drop_last leaves nothing; lower batch_size={batch_size} or keep the last batch'
            )
        _, last_synthetic = self._counts(self._steps - 1)
        self._synthetic_per_epoch = (self._steps - 1) * self.synthetic_per_batch + last_synthetic

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of one epoch.

        Args:
            epoch: its number, from 0.
            start_step: the first step to give, 0 to `len(self)`; the steps before it cost nothing.

        Returns:
            An iterator over `Batch`.

        Raises:
            ValueError: if a number is out of range; at once, not at the first batch.
        """
        if epoch < 0:
            raise ValueError(f'got epoch={epoch}, expected at least 0')
        if not 0 <= start_step <= len(self):
            raise ValueError(f'got start_step={start_step}, expected 0 to {len(self)}, the number of steps in an epoch')
        return self._batches(epoch, start_step)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        real_order = torch.randperm(len(self.real), generator=generator_for('real', self.seed, epoch))
        for step in range(start_step, len(self)):
            num_real, num_synthetic = self._counts(step)
            first_real = step * self.real_per_batch
            first_synthetic = epoch * self._synthetic_per_epoch + step * self.synthetic_per_batch
            parts = []
            if num_real:
                indices = real_order[first_real:first_real + num_real]
                generator = generator_for('augment real', self.seed, epoch, step)
                parts.append(self._take(self.real, indices, self.real_augment, generator))
            if num_synthetic and self.synthetic is not None:
                indices = self._synthetic_indices(self.synthetic, first_synthetic, num_synthetic)
                generator = generator_for('augment synthetic', self.seed, epoch, step)
                parts.append(self._take(self.synthetic, indices, self.synthetic_augment, generator))
            shuffle = torch.randperm(num_real + num_synthetic, generator=generator_for('mix', self.seed, epoch, step))
            shuffle = _move(shuffle, self.device)
            synthetic = shuffle >= num_real
            x, y = (torch.cat(tensors)[shuffle].contiguous() for tensors in zip(*parts, strict=True))
            yield Batch(x, y, synthetic)

    def _counts(self, step: int) -> tuple[int, int]:
        """How many real and how many synthetic images the batch of a step holds."""
        counted = min(self._counted_per_batch, len(self.real) - step * self._counted_per_batch)
        if not self.real_per_batch:
            return 0, counted
        return counted, round(counted * self.synthetic_per_batch / self.real_per_batch)

    def _synthetic_indices(self, synthetic: ImageSource, first: int, count: int) -> Tensor:
        """Indices at places first..first+count-1 of the endless stream of passes; a batch may span several passes."""
        indices = []
        while count:
            number, place = divmod(first, len(synthetic))
            here = min(count, len(synthetic) - place)
            permutation = IndexPermutation(len(synthetic), 'synthetic', self.seed, number)
            indices.append(permutation(torch.arange(place, place + here)))
            first, count = first + here, count - here
        return torch.cat(indices)

    def _take(
        self, source: ImageSource, indices: Tensor, augment: Augment, generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        images, labels = (_move(tensor, self.device) for tensor in source.take(indices))
        return to_unit_range(augment(images, generator=generator)), labels


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == 'cuda' and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)  # the host goes on while pinned memory travels
    return tensor.to(device)


def _check_settings(batch_size: int, synthetic_fraction: float, seed: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'got batch_size={batch_size!r}, expected an integer of at least 1')
    # written so that NaN fails as well
    if isinstance(synthetic_fraction, bool) or not (
        isinstance(synthetic_fraction, Real) and 0 <= synthetic_fraction <= 1
    ):
        raise ValueError(f'got synthetic_fraction={synthetic_fraction!r}, expected a number from 0 to 1')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f'got seed={seed!r}, expected an integer')
