"""Training batches with a fixed share of synthetic images, in an order that can be resumed at any step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, check_compatible, has_soft_labels, label_distribution, to_unit_range
from timm_paf.data.augment import Augment
from timm_paf.data.order import exact_weights, generator_for, pass_indices, rank_rows, stream_indices

T = TypeVar('T')

_UNCHANGED = Augment()


@dataclass(frozen=True, eq=False)
class Batch:
    """One training batch, or the share of one process; `x, y = batch` unpacks images and class numbers.

    Args:
        x: Images (B, C, H, W), float32 in [0, 1], contiguous.
        y: Labels (B,) int64; for soft labels, the most likely class.
        synthetic: (B,) bool, True for images from a synthetic source.
        target: Target of the loss: y, or probabilities (B, K) float32 if labels are soft, smoothed or mixed.
        total: Number of images in the batches of all processes.
    """

    x: Tensor
    y: Tensor
    synthetic: Tensor
    target: Tensor
    total: int

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over x and y."""
        return iter((self.x, self.y))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.x)


class _Part(NamedTuple):
    source: ImageSource
    name: str
    augment: Augment
    smoothing: float


class MixedBatches:
    """Batches with exactly round(F * B) synthetic images each, shuffled with the real ones.

    An epoch is one pass over the real images, in a new pseudo-random order. With R = B - round(F * B) real images per
    batch, it has ceil(N / R) steps for N real images. The last batch may hold fewer real images, r; it then holds
    round(r * round(F * B) / R) synthetic images, which keeps the shares. It is left out if a process would get only
    one of its images, with which BatchNorm cannot train; `left_out` is its number of real images, others in each epoch.
    If batches hold no real images (F = 1), an epoch is one pass over N synthetic images. `round` is Python's, which
    rounds 2.5 to 2; `real_per_batch` and `synthetic_per_batch` hold the results.

    The synthetic images form one stream that continues from epoch to epoch. Several sources share it by their weights,
    with exact counts (see `counts_after`). Each source is read in passes, so no image is used twice before all have
    been used once. There are no lists of indices (see `IndexPermutation`), so sets may have any size and order.

    The images of a batch, their order and their augmentation are functions of (seed, epoch, step) and of the settings:
    a run that is resumed within an epoch sees the same batches as an uninterrupted run, on any device. With several
    processes, B is the number of images of all of them, shared out by `rank_rows`; together the processes see the same
    images, with the same augmentation, as a single process.

    Args:
        real: Real images. A source with a method `prefetch` (see `DecodedImages`) is passed the indices in advance.
        synthetic: Synthetic images, one source or several, of the same shape and classes; may be None if the fraction
            is 0.
        batch_size: B, at least 1.
        synthetic_fraction: F in [0, 1].
        seed: Any integer.
        synthetic_weights: One per synthetic source, above 0; only ratios matter. None for equal weights.
        real_augment: Augmentation of real images.
        synthetic_augment: Augmentation of synthetic images, one for all sources or one per source; none by default, as
            in the paper.
        smoothing: Label smoothing of real images, 0 to 1 (see `label_distribution`).
        synthetic_smoothing: Label smoothing of synthetic images, one for all sources or one per source.
        rank: Number of this process, 0 to world_size - 1.
        world_size: Number of processes.
        device: Device of the batches. Images are copied there in the dtype in which they are stored.

    Raises:
        ValueError: If a setting is out of range, synthetic images are missing, the sources differ in shape or classes,
            or a batch has fewer images than there are processes.
    """

    def __init__(
        self,
        real: ImageSource,
        synthetic: ImageSource | Sequence[ImageSource] | None = None,
        *,
        batch_size: int,
        synthetic_fraction: float,
        seed: int,
        synthetic_weights: Sequence[float] | None = None,
        real_augment: Augment = _UNCHANGED,
        synthetic_augment: Augment | Sequence[Augment] = _UNCHANGED,
        smoothing: float = 0.,
        synthetic_smoothing: float | Sequence[float] = 0.,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = 'cpu',
    ) -> None:
        sources = [] if synthetic is None else _one_each(synthetic)
        augments = _one_each(synthetic_augment, len(sources), 'synthetic_augment')
        smoothings = _one_each(synthetic_smoothing, len(sources), 'synthetic_smoothing')
        weights = _one_each(1. if synthetic_weights is None else synthetic_weights, len(sources), 'synthetic_weights')
        if batch_size < 1:
            raise ValueError(f'got batch_size={batch_size!r}, expected an integer of at least 1')
        if not 0 <= rank < world_size:
            raise ValueError(f'got rank={rank!r}, world_size={world_size!r}, expected 0 <= rank < world_size')
        for name, share in ('synthetic_fraction', synthetic_fraction), *(
                ('smoothing', value) for value in (smoothing, *smoothings)):
            if not 0 <= share <= 1:
                raise ValueError(f'got {name}={share!r}, expected a number from 0 to 1')
        if not sources and synthetic_fraction > 0:
            raise ValueError(
                f'got synthetic_fraction={synthetic_fraction} without synthetic images; add some, or set it to 0')
        for source in sources:
            check_compatible(real, source)
        self.real, self.synthetic, self.device = real, synthetic, torch.device(device)
        self.synthetic_per_batch = round(synthetic_fraction * batch_size)
        self.real_per_batch = batch_size - self.synthetic_per_batch
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._parts = [_Part(real, 'real', real_augment, smoothing), *(
            _Part(sources[i], f'synthetic {i}', augments[i], smoothings[i]) for i in range(len(sources)))]
        self._synthetic_indices = partial(
            stream_indices, sizes=[len(source) for source in sources], weights=exact_weights(weights), seed=seed)
        # an epoch is a pass over the real images, or over as many synthetic ones if batches hold no real images
        self._steps = -(-len(real) // (self.real_per_batch or self.synthetic_per_batch))
        last_real, last_synthetic = self._counts(self._steps - 1)
        self.left_out = 0
        if self._steps > 1 and last_real + last_synthetic < 2 * world_size <= batch_size:
            self._steps, self.left_out = self._steps - 1, last_real or last_synthetic
            last_real, last_synthetic = self._counts(self._steps - 1)
        self._synthetic_per_epoch = (self._steps - 1) * self.synthetic_per_batch + last_synthetic
        if last_real + last_synthetic < world_size:
            raise ValueError(
                f'the smallest batch has {last_real + last_synthetic} images for world_size={world_size} processes, '
                f'expected at least one per process; set another batch_size')
        used = self._parts[0 if self.real_per_batch else 1:None if self.synthetic_per_batch else 1]
        self._soft = any(part.smoothing or part.augment.cutmix or has_soft_labels(part.source) for part in used)

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return self._steps

    @property
    def soft(self) -> bool:
        """Whether targets are probabilities."""
        return self._soft

    def shares(self) -> set[int]:
        """Sizes of the shares of the processes in whole batches and in the last one."""
        totals = {sum(self._counts(step)) for step in (0, self._steps - 1)}
        return {-(-(total - rank) // self._world_size) for total in totals for rank in range(self._world_size)}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch (from 0), from a step on; the steps before it cost nothing."""
        if epoch < 0:
            raise ValueError(f'got epoch={epoch}, expected at least 0')
        if not 0 <= start_step <= len(self):
            raise ValueError(f'got start_step={start_step}, expected 0 to {len(self)}, the number of steps in an epoch')
        steps = range(start_step, len(self))
        loaded: Iterable[tuple[Tensor, Tensor] | None] = repeat(None)
        if self.real_per_batch and hasattr(self.real, 'prefetch'):
            # of plain values, because it is sent to worker processes, and whole data sets must not be
            plan = partial(
                _decoded_indices, epoch=epoch, start_step=start_step, paired=bool(self._parts[0].augment.cutmix),
                size=len(self.real), per_batch=self.real_per_batch, seed=self._seed, rank=self._rank,
                world_size=self._world_size)
            loaded = self.real.prefetch(plan, len(steps), key=('decode', self._seed, epoch))
        return (self._batch(epoch, step, images) for step, images in zip(steps, loaded, strict=False))

    def _batch(self, epoch: int, step: int, loaded: tuple[Tensor, Tensor] | None) -> Batch:
        num_real, num_synthetic = self._counts(step)
        drawn = [_real_indices(epoch, step, len(self.real), self.real_per_batch, self._seed)]
        if num_synthetic:
            first = epoch * self._synthetic_per_epoch + step * self.synthetic_per_batch
            drawn += self._synthetic_indices(first, num_synthetic)
        parts, rows_of_parts, offset = [], [], 0
        for part, indices in zip(self._parts, drawn, strict=False):
            rows = rank_rows(len(indices), offset, rank=self._rank, world_size=self._world_size)
            if len(rows):
                generator = generator_for(f'augment {part.name}', self._seed, epoch, step)
                parts.append(self._take(part, indices, rows, generator, None if offset else loaded))
                rows_of_parts.append(rows + offset)
            offset += len(indices)
        # the order of the whole batch determines the place of an image, in whichever process it is
        places = torch.randperm(offset, generator=generator_for('mix', self._seed, epoch, step))
        numbers = torch.cat(rows_of_parts)
        order = places[numbers].argsort()
        synthetic = to_device(numbers[order] >= num_real, self.device)
        order = to_device(order, self.device)
        x, target = (torch.cat(tensors)[order].contiguous() for tensors in zip(*parts, strict=True))
        y = target if target.ndim == 1 else target.argmax(1)
        return Batch(x, y, synthetic, target, offset)

    def _take(
        self, part: _Part, indices: Tensor, rows: Tensor, generator: torch.Generator,
        loaded: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return images and labels of the given rows of a batch's indices into one source."""
        paired = bool(part.augment.cutmix)
        wanted = _with_partners(rows, len(indices)) if paired else rows
        # random numbers are drawn for the images of all processes, so that augmentation does not depend on the process
        draws = part.augment.draw(len(indices), torch.Size(part.source.image_shape), generator=generator)
        draws = {name: to_device(values[wanted], self.device) for name, values in draws.items()}
        images, labels = (to_device(tensor, self.device) for tensor in loaded or part.source.take(indices[wanted]))
        images = to_unit_range(part.augment.apply(images, draws))
        if self._soft:
            labels = label_distribution(labels, part.source.num_classes, smoothing=part.smoothing)
        if not paired:
            return images, labels
        own, other = slice(len(rows)), slice(len(rows), None)
        return part.augment.mix(
            images[own], images[other], labels[own], labels[other], {'cutmix': draws['cutmix'][own]})

    def _counts(self, step: int) -> tuple[int, int]:
        """Return the numbers of real and synthetic images in the batch of a step."""
        per_batch = self.real_per_batch or self.synthetic_per_batch
        counted = min(per_batch, len(self.real) - step * per_batch)
        if not self.real_per_batch:
            return 0, counted
        return counted, round(counted * self.synthetic_per_batch / self.real_per_batch)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory, so that the host does not wait for the copy."""
    if device.type == 'cuda' and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _with_partners(rows: Tensor, count: int) -> Tensor:
    """Return the rows, then the row that cutmix pairs with each of them."""
    return torch.cat([rows, (rows + 1) % count])


def _real_indices(epoch: int, step: int, size: int, per_batch: int, seed: int) -> Tensor:
    first = step * per_batch
    return pass_indices(epoch * size + first, min(per_batch, size - first), size, 'real', seed)


def _decoded_indices(
    number: int, *, epoch: int, start_step: int, paired: bool, size: int, per_batch: int, seed: int, rank: int,
    world_size: int,
) -> Tensor:
    """Return the indices of the real images that one process needs for step start_step + number."""
    indices = _real_indices(epoch, start_step + number, size, per_batch, seed)
    rows = rank_rows(len(indices), 0, rank=rank, world_size=world_size)
    return indices[_with_partners(rows, len(indices)) if paired else rows]


def _one_each(value: T | Sequence[T], count: int = 1, name: str = '') -> list[T]:
    """Return a value for each synthetic source."""
    if not isinstance(value, list | tuple):
        return [cast(T, value)] * count
    if name and len(value) != count:
        expected = '1' if count == 1 else f'1 or {count}'
        raise ValueError(f'got {len(value)} values of {name} for {count} synthetic sources, expected {expected}')
    return list(value)
