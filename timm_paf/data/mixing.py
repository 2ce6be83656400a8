"""Training batches with a fixed share of synthetic images, in an order that can be resumed at any step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from numbers import Real
from typing import TypeVar, cast

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, check_compatible, has_soft_labels, label_distribution, to_unit_range
from timm_paf.data.augment import Augment
from timm_paf.data.order import generator_for
from timm_paf.data.streams import EndlessStream, Rank, RealPasses, exact_weights

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


@dataclass(frozen=True, eq=False)
class _Part:
    """A source of images, with its augmentation and label smoothing."""
    source: ImageSource
    name: str
    augment: Augment
    smoothing: float


class MixedBatches:
    """Batches with exactly round(F * B) synthetic images each, shuffled with the real ones.

    An epoch is one pass over the real images, in a new pseudo-random order. With R = B - round(F * B) real images per
    batch, it has ceil(N / R) steps for N real images. The last batch may hold fewer real images, r; it then holds
    round(r * round(F * B) / R) synthetic images, which keeps the shares. If batches hold no real images (F = 1), an
    epoch is one pass over N synthetic images. `round` is Python's, which rounds 2.5 to 2; `real_per_batch` and
    `synthetic_per_batch` hold the results.

    The synthetic images form one stream that continues from epoch to epoch. Several sources share it by their weights:
    the number of images from each source depends on the position in the stream alone (`counts_after`), so the shares
    are exact. Each source is read in passes, each in another pseudo-random order, so no image is used twice before all
    have been used once. There are no lists of indices (see `IndexPermutation`), so sets may be of any size and sorted
    in any way.

    The images of a batch, their order and their augmentation are functions of (seed, epoch, step) and of the settings:
    a run that is resumed within an epoch sees the same batches as an uninterrupted run, on any device. With several
    processes, B is the number of images of all of them, and `Rank` shares them out; together the processes see the same
    images, with the same augmentation, as a single process.

    Args:
        real: Real images. A source with a method `prefetch` (see `DecodedImages`) is passed the indices in advance.
        synthetic: Synthetic images, one source or several, of the same shape and classes; may be None if the fraction
            is 0.
        batch_size: B, at least 1.
        synthetic_fraction: F in [0, 1].
        seed: Any integer.
        synthetic_weights: One per synthetic source, above 0; only ratios matter. None for equal weights.
        drop_last: Leave out a last batch that is not full.
        real_augment: Augmentation of real images.
        synthetic_augment: Augmentation of synthetic images, one for all sources or one per source; none by default, as
            in the paper.
        smoothing: Label smoothing of real images, 0 to 1 (see `label_distribution`).
        synthetic_smoothing: Label smoothing of synthetic images, one for all sources or one per source.
        rank: Number of this process.
        world_size: Number of processes.
        device: Device of the batches. Images are copied there in the dtype in which they are stored.

    Raises:
        ValueError: If a setting is out of range, synthetic images are missing, the sources differ in shape or classes,
            `drop_last` leaves no batch, or a batch has fewer images than there are processes.
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
        drop_last: bool = False,
        real_augment: Augment = _UNCHANGED,
        synthetic_augment: Augment | Sequence[Augment] = _UNCHANGED,
        smoothing: float = 0.,
        synthetic_smoothing: float | Sequence[float] = 0.,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = 'cpu',
    ) -> None:
        sources: tuple[ImageSource, ...] = ()
        if synthetic is not None:
            sources = tuple(synthetic) if isinstance(synthetic, list | tuple) else (cast(ImageSource, synthetic),)
        _check_settings(batch_size, synthetic_fraction, seed)
        if not sources and synthetic_fraction > 0:
            raise ValueError(
                f'got synthetic_fraction={synthetic_fraction} without synthetic images; add some, or set it to 0'
            )
        for source in sources:
            check_compatible(real, source)
        augments = _one_each(synthetic_augment, len(sources), 'synthetic_augment')
        smoothings = _one_each(synthetic_smoothing, len(sources), 'synthetic_smoothing')
        for value in (smoothing, *smoothings):
            _check_share(value, 'smoothing')
        self.real = real
        self.synthetic = synthetic
        self.batch_size = batch_size
        self.synthetic_per_batch = round(synthetic_fraction * batch_size)
        self.real_per_batch = batch_size - self.synthetic_per_batch
        self.seed = seed
        self.rank = Rank(rank, world_size)
        self.device = torch.device(device)
        self._parts = [_Part(real, 'real', real_augment, smoothing)]
        for number, (source, augment, value) in enumerate(zip(sources, augments, smoothings, strict=True)):
            self._parts.append(_Part(source, f'synthetic {number}', augment, value))
        weights = (1,) * len(sources) if synthetic_weights is None else synthetic_weights
        self._stream = EndlessStream(
            tuple(len(source) for source in sources), exact_weights(weights, count=len(sources)), seed,
        )
        # an epoch is a pass over the real images, or over as many synthetic ones if batches hold no real images
        self._counted = RealPasses(len(real), self.real_per_batch or self.synthetic_per_batch, seed)
        self._steps = _steps(self._counted, drop_last, real.name)
        last_real, last_synthetic = self._counts(self._steps - 1)
        self._synthetic_per_epoch = (self._steps - 1) * self.synthetic_per_batch + last_synthetic
        if last_real + last_synthetic < world_size:
            raise ValueError(
                f'the smallest batch has {last_real + last_synthetic} images for world_size={world_size} processes, '
                f'expected at least one per process; set drop_last, or another batch_size'
            )
        used = self._parts[0 if self.real_per_batch else 1:None if self.synthetic_per_batch else 1]
        self._soft = any(part.smoothing or part.augment.cutmix or has_soft_labels(part.source) for part in used)

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return self._steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch.

        Args:
            epoch: Its number, from 0.
            start_step: First step, 0 to `len(self)`; the steps before it cost nothing.

        Returns:
            An iterator over `Batch`.

        Raises:
            ValueError: If a number is out of range; raised by this call, not at the first batch.
        """
        if epoch < 0:
            raise ValueError(f'got epoch={epoch}, expected at least 0')
        if not 0 <= start_step <= len(self):
            raise ValueError(f'got start_step={start_step}, expected 0 to {len(self)}, the number of steps in an epoch')
        return self._batches(epoch, start_step)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        steps = range(start_step, len(self))
        loaded: Iterable[tuple[Tensor, Tensor] | None] = repeat(None)
        if self.real_per_batch and hasattr(self.real, 'prefetch'):
            plan = partial(
                _real_indices, self._counted, self.rank, bool(self._parts[0].augment.cutmix), epoch, start_step)
            loaded = self.real.prefetch(plan, len(steps), key=('decode', self.seed, epoch))
        for step, images in zip(steps, loaded, strict=False):
            yield self._batch(epoch, step, images)

    def _batch(self, epoch: int, step: int, loaded: tuple[Tensor, Tensor] | None) -> Batch:
        num_real, num_synthetic = self._counts(step)
        first = epoch * self._synthetic_per_epoch + step * self.synthetic_per_batch
        drawn = [self._counted.indices(epoch, step) if num_real else torch.empty(0, dtype=torch.int64)]
        if num_synthetic:
            drawn += self._stream.indices(first, num_synthetic)
        parts, rows_of_parts, offset = [], [], 0
        for number, (part, indices) in enumerate(zip(self._parts, drawn, strict=False)):
            rows = self.rank.rows(len(indices), offset)
            if len(rows):
                generator = generator_for(f'augment {part.name}', self.seed, epoch, step)
                parts.append(self._take(part, indices, rows, generator, loaded if number == 0 else None))
                rows_of_parts.append(rows + offset)
            offset += len(indices)
        # the order of the whole batch determines the place of an image, in whichever process it is
        places = torch.randperm(offset, generator=generator_for('mix', self.seed, epoch, step))
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
        images, labels = (
            to_device(tensor, self.device) for tensor in (loaded or part.source.take(indices[wanted])))
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
        counted = self._counted.count(step)
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


def _real_indices(passes: RealPasses, rank: Rank, paired: bool, epoch: int, start_step: int, number: int) -> Tensor:
    """Return the indices of the real images that one process needs for step start_step + number.

    A function of plain values, because it is sent to worker processes, and whole data sets must not be.
    """
    indices = passes.indices(epoch, start_step + number)
    rows = rank.rows(len(indices), 0)
    return indices[_with_partners(rows, len(indices)) if paired else rows]


def _steps(counted: RealPasses, drop_last: bool, name: str) -> int:
    steps = counted.size // counted.per_batch if drop_last else -(-counted.size // counted.per_batch)
    if not steps:
        raise ValueError(
            f'{name}: {counted.size} images do not fill one batch that holds {counted.per_batch} of them, and '
            f'drop_last leaves no batch; lower batch_size or keep the last batch'
        )
    return steps


def _one_each(value: T | Sequence[T], count: int, name: str) -> tuple[T, ...]:
    if not isinstance(value, list | tuple):
        return (cast(T, value),) * count
    if len(value) != count:
        raise ValueError(f'got {len(value)} values of {name} for {count} synthetic sources, expected 1 or {count}')
    return tuple(value)


def _check_share(value: float, name: str) -> None:
    # in this form, because NaN must fail
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f'got {name}={value!r}, expected a number from 0 to 1')


def _check_settings(batch_size: int, synthetic_fraction: float, seed: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'got batch_size={batch_size!r}, expected an integer of at least 1')
    _check_share(synthetic_fraction, 'synthetic_fraction')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f'got seed={seed!r}, expected an integer')
