"""Indices of the images in a batch: exact counts from weighted sources, and the share of each process."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isfinite
from numbers import Real

import torch
from torch import Tensor

from timm_paf.data.order import IndexPermutation


def counts_after(n: int, weights: Sequence[Fraction]) -> list[int]:
    """Count how many of the first n places of a stream belong to each of several sources.

    The sources are split into a first and a second half. Of n places the first half has

        floor(n * W1 / (W1 + W2) + 1/2),

    where W1 and W2 are the sums of the weights of the halves; the second half has the rest. Each half divides its
    places in the same way. The counts depend on n alone, never decrease as n grows, and add up to n, so the places of
    any section of the stream are known without computing the stream before it. (The method of largest remainders is not
    suitable: with three or more sources, a count can decrease when n grows.) Each count differs from its exact share by
    at most half an image per split: half an image with two sources, one with four.

    Args:
        n: Number of places, at least 0.
        weights: Weights of the sources, positive; only their ratios matter.

    Returns:
        One count per source; they add up to n.
    """
    if len(weights) == 1:
        return [n]
    half = len(weights) // 2
    first, second = weights[:half], weights[half:]
    share = Fraction(sum(first)) / sum(weights)
    count = floor(n * share + Fraction(1, 2))
    return counts_after(count, first) + counts_after(n - count, second)


def exact_weights(weights: Sequence[float], *, count: int) -> tuple[Fraction, ...]:
    """Convert weights to fractions by their decimal digits: 0.7 is 7/10.

    Raises:
        ValueError: If there are not `count` weights, or one is not a finite number above 0.
    """
    if len(weights) != count:
        raise ValueError(f'got {len(weights)} weights {list(weights)} for {count} synthetic sources, expected {count}')
    for weight in weights:
        if isinstance(weight, bool) or not (isinstance(weight, Real) and isfinite(weight) and weight > 0):
            raise ValueError(f'got synthetic weight {weight!r}, expected a number above 0, or remove the source')
    return tuple(Fraction(str(weight)) for weight in weights)


@dataclass(frozen=True)
class EndlessStream:
    """Endless stream of images from several sources, shared by weight.

    Of the first n places, source i has `counts_after(n, weights)[i]`. Each source is read in passes: all of its images
    in one pseudo-random order, then in another, and so on. Memory is O(1).

    Args:
        sizes: Number of images of each source.
        weights: One per source, as `exact_weights` returns them.
        seed: Any integer. It determines a pass, together with the number of the source, the number of the pass, and the
            size.
    """

    sizes: tuple[int, ...]
    weights: tuple[Fraction, ...]
    seed: int

    def indices(self, first: int, count: int) -> list[Tensor]:
        """Return indices (M_i,) int64 into each source for places first..first+count-1; the M_i add up to `count`."""
        before, after = (counts_after(n, self.weights) for n in (first, first + count))
        return [
            self._passes(source, begin, end - begin)
            for source, (begin, end) in enumerate(zip(before, after, strict=True))
        ]

    def _passes(self, source: int, first: int, count: int) -> Tensor:
        size, indices = self.sizes[source], [torch.empty(0, dtype=torch.int64)]
        while count:
            number, place = divmod(first, size)
            here = min(count, size - place)
            permutation = IndexPermutation(size, 'synthetic', self.seed, source, number)
            indices.append(permutation(torch.arange(place, place + here)))
            first, count = first + here, count - here
        return torch.cat(indices)


@dataclass(frozen=True)
class RealPasses:
    """One pass over the real images per epoch, each in a new pseudo-random order.

    Args:
        size: Number of real images.
        per_batch: Number of them in a full batch of all processes.
        seed: Any integer.
    """

    size: int
    per_batch: int
    seed: int

    def count(self, step: int) -> int:
        """Return the number of real images in the batch of a step."""
        return max(0, min(self.per_batch, self.size - step * self.per_batch))

    def indices(self, epoch: int, step: int) -> Tensor:
        """Return the indices (`count(step)`,) int64 of the real images in the batch of a step."""
        first = step * self.per_batch
        return IndexPermutation(self.size, 'real', self.seed, epoch)(torch.arange(first, first + self.count(step)))


@dataclass(frozen=True)
class Rank:
    """The share of each batch that one of several processes takes.

    Image c of a batch, counted from the real images on, belongs to process c mod W. The shares are disjoint and
    complete; their sizes differ by at most one, and so do the counts of each source in them.

    Args:
        rank: Number of this process, 0 to world_size - 1.
        world_size: Number of processes W, at least 1.

    Raises:
        ValueError: If a number is out of range.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f'got world_size={self.world_size!r}, expected at least 1')
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f'got rank={self.rank!r}, expected 0 to {self.world_size - 1}, below world_size')

    def rows(self, count: int, offset: int) -> Tensor:
        """Return which of the `count` images of one source, after `offset` others in the batch, this process takes."""
        return torch.arange(count)[(self.rank - offset) % self.world_size::self.world_size]
