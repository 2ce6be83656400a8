"""Batches that hold real and synthetic images at a set share, in an order that can be entered anywhere."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, TypeVar, cast

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
    """One training batch, or one process's share of it; `x, y = batch` unpacks images and class numbers.

    Args:
        x: images (B, C, H, W), float32 in [0, 1], contiguous.
        y: labels (B,) int64; where labels are soft, the likeliest class.
        synthetic: (B,) bool, True where the image comes from a synthetic source.
        target: what the loss compares with: y itself, or probabilities (B, K) float32 where labels are soft, smoothed
            or mixed.
        total: number of images in the batch of all processes together.
    """

    x: Tensor
    y: Tensor
    synthetic: Tensor
    target: Tensor
    total: int

    def __iter__(self) -> Iterator[Tensor]:
        """x, then y."""
        return iter((self.x, self.y))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One source in a batch: how its images are treated."""
    source: ImageSource
    name: str
    augment: Augment
    smoothing: float


class MixedBatches:
    """Epochs of batches that hold exactly round(F * B) synthetic images each, shuffled with the real ones.

    An epoch is one pass over the real images, in a new pseudo-random order. With R = B - round(F * B) real images a
    batch, it has ceil(N / R) steps for N real images. The last batch may hold fewer, r; it then takes
    round(r * round(F * B) / R) synthetic images, so that the shares stay as they are. If no real image is left in a
    batch (F = 1), an epoch is as long as if the N images were synthetic: N of them pass. Python's `round` decides, so
    2.5 goes to 2; what came out is in `real_per_batch` and `synthetic_per_batch`.

    The synthetic images form one stream that goes on from epoch to epoch. Several sources share it by their weights:
    how many places each has had is a function of the number of places alone (`counts_after`), so over time the shares
    are exact. Each source is passed over in a pseudo-random order, another one each time, and none of its images is
    used a second time before all have been used once. No list of indices is kept for real or synthetic images (see
    `IndexPermutation`), so sets may be of any size and sorted in any way.

    All of it (which images, their places in the batch, their augmentation) is a function of (seed, epoch, step) and of
    the settings here: a run that goes on in the middle of an epoch sees the very batches that it would have seen, on
    any device. With several processes B counts the images of all of them, and `Rank` says which of them each takes;
    together they see what a single process would, each image augmented alike.

    Args:
        real: the real images. A source with a method `prefetch` (see `DecodedImages`) is told what comes next.
        synthetic: the synthetic images, one source or several, of the same shape and classes; may be None if the
            fraction is 0.
        batch_size: B, at least 1.
        synthetic_fraction: F in [0, 1].
        seed: any integer.
        synthetic_weights: one for each synthetic source, above 0; only ratios matter. Equal weights if None.
        drop_last: leave out a last batch that is not full.
        real_augment: what to do to real images.
        synthetic_augment: what to do to synthetic images, one for all sources or one for each; nothing by default, as
            in the paper.
        smoothing: label smoothing of real images, 0 to 1 (see `label_distribution`).
        synthetic_smoothing: label smoothing of synthetic images, one for all sources or one for each.
        rank: number of this process.
        world_size: number of processes.
        device: where batches go. Images travel there in the dtype they are stored in.

    Raises:
        ValueError: if a setting is out of range, synthetic images are asked for but missing, the sources differ in
            shape or classes, there is not one full batch and `drop_last` leaves nothing, or a batch has fewer images
            than there are processes.
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
        sources = _as_tuple(synthetic)
        _check_settings(batch_size, synthetic_fraction, seed)
        if not sources and synthetic_fraction > 0:
            raise ValueError(
                f'got synthetic_fraction={synthetic_fraction} without synthetic images; give some, or a fraction of 0'
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
        self._parts = [
            _Part(source=real, name='real', augment=real_augment, smoothing=smoothing),
            *(
                _Part(source=source, name=f'synthetic {number}', augment=augment, smoothing=value)
                for number, (source, augment, value) in enumerate(zip(sources, augments, smoothings, strict=True))
            ),
        ]
        weights = (1,) * len(sources) if synthetic_weights is None else synthetic_weights
        self._stream = EndlessStream(
            tuple(len(source) for source in sources), exact_weights(weights, count=len(sources)), seed,
        )
        # what an epoch counts: real images, or as many synthetic ones if a batch holds no real image
        self._counted = RealPasses(len(real), self.real_per_batch or self.synthetic_per_batch, seed)
        self._steps = _steps(self._counted, drop_last, real.name)
        last_real, last_synthetic = self._counts(self._steps - 1)
        self._synthetic_per_epoch = (self._steps - 1) * self.synthetic_per_batch + last_synthetic
        if last_real + last_synthetic < world_size:
            raise ValueError(
                f'the smallest batch has {last_real + last_synthetic} images for world_size={world_size} processes, '
                f'expected one each at least; set drop_last, or another batch_size'
            )
        used = [part for part, count in zip(self._parts, (self.real_per_batch, *self._used()), strict=True) if count]
        self._soft = any(
            part.smoothing or part.augment.cutmix or has_soft_labels(part.source) for part in used
        )

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
        steps = range(start_step, len(self))
        real: Iterable[tuple[Tensor, Tensor]] | None = None
        if self.real_per_batch and hasattr(self.real, 'prefetch'):
            plan = partial(
                _real_indices, self._counted, self.rank, bool(self._parts[0].augment.cutmix), epoch, start_step)
            real = cast(Any, self.real).prefetch(plan, len(steps), key=('decode', self.seed, epoch))
        upcoming = None if real is None else iter(real)
        for step in steps:
            yield self._batch(epoch, step, None if upcoming is None else next(upcoming))

    def _batch(self, epoch: int, step: int, loaded: tuple[Tensor, Tensor] | None) -> Batch:
        num_real, num_synthetic = self._counts(step)
        first = epoch * self._synthetic_per_epoch + step * self.synthetic_per_batch
        drawn = [torch.empty(0, dtype=torch.int64)]
        if num_real:
            drawn = [self._counted.indices(epoch, step)]
        if num_synthetic:
            drawn += self._stream.indices(first, num_synthetic)
        parts, numbers, offset = [], [], 0
        for number, (part, indices) in enumerate(zip(self._parts, drawn, strict=False)):
            rows = self.rank.rows(len(indices), offset)
            if len(rows):
                generator = generator_for(f'augment {part.name}', self.seed, epoch, step)
                parts.append(self._take(part, indices, rows, generator, loaded if number == 0 else None))
                numbers.append(rows + offset)
            offset += len(indices)
        # an image's place follows from the order of the whole batch, whoever takes it
        places = torch.randperm(offset, generator=generator_for('mix', self.seed, epoch, step))
        numbers = torch.cat(numbers)
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
        """Images and labels of the given rows of what is drawn from one source."""
        paired = bool(part.augment.cutmix)
        wanted = _with_partners(rows, len(indices)) if paired else rows
        # numbers are drawn for all processes' images, so that each is treated alike whoever takes it
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
        """How many real and how many synthetic images the batch of a step holds."""
        counted = self._counted.count(step)
        if not self.real_per_batch:
            return 0, counted
        return counted, round(counted * self.synthetic_per_batch / self.real_per_batch)

    def _used(self) -> list[int]:
        """1 for each synthetic source if there are synthetic images in batches at all."""
        return [int(self.synthetic_per_batch > 0)] * (len(self._parts) - 1)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU through pinned memory, so that the host goes on while it travels."""
    if device.type == 'cuda' and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _with_partners(rows: Tensor, count: int) -> Tensor:
    """Rows, then the row that cutmix pairs each with."""
    return torch.cat([rows, (rows + 1) % count])


def _real_indices(passes: RealPasses, rank: Rank, paired: bool, epoch: int, start_step: int, number: int) -> Tensor:
    """Indices of the real images that one process needs for step start_step + number.

    A function of plain values: worker processes are sent it, and must not be sent whole data sets.
    """
    indices = passes.indices(epoch, start_step + number)
    rows = rank.rows(len(indices), 0)
    return indices[_with_partners(rows, len(indices)) if paired else rows]


def _steps(counted: RealPasses, drop_last: bool, name: str) -> int:
    full, rest = divmod(counted.size, counted.per_batch)
    steps = full if drop_last or not rest else full + 1
    if not steps:
        raise ValueError(
            f'{name}: {counted.size} images do not fill one batch that takes {counted.per_batch} of them, and '
            f'drop_last leaves nothing; lower batch_size or keep the last batch'
        )
    return steps


def _as_tuple(synthetic: ImageSource | Sequence[ImageSource] | None) -> tuple[ImageSource, ...]:
    if synthetic is None:
        return ()
    return tuple(synthetic) if isinstance(synthetic, list | tuple) else (cast(ImageSource, synthetic),)


def _one_each(value: T | Sequence[T], count: int, name: str) -> tuple[T, ...]:
    if not isinstance(value, list | tuple):
        return (cast(T, value),) * count
    if len(value) != count:
        raise ValueError(f'got {len(value)} values of {name} for {count} synthetic sources, expected one each or one')
    return tuple(value)


def _check_share(value: float, name: str) -> None:
    # written so that NaN fails as well
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f'got {name}={value!r}, expected a number from 0 to 1')


def _check_settings(batch_size: int, synthetic_fraction: float, seed: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'got batch_size={batch_size!r}, expected an integer of at least 1')
    _check_share(synthetic_fraction, 'synthetic_fraction')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f'got seed={seed!r}, expected an integer')
