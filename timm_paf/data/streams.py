"""Which images a batch holds: exact counts from weighted sources, and what part of a batch falls to one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isfinite
from numbers import Real

import torch
from torch import Tensor

from timm_paf.data.order import IndexPermutation


def counts_after(n: int, weights: Sequence[Fraction]) -> list[int]:
    """How many of the first n places of a stream belong to each of several sources.

    The sources are halved into two groups, first half and second half; of n places the first group has

        floor(n * W1 / (W1 + W2) + 1/2),

    where W1 and W2 are the weights of the groups; the second has the rest, and each group deals out its places in the
    same way. Each count is a function of n alone, never falls as n grows, and all add up to n, so the places of any
    stretch of the stream are known without knowing what came before. (The largest remainders of n would not do: with
    three sources or more they can take a place back when n grows.) With two sources each count is within half an image
    of its share of n, with four within one, and so on: half an image for each halving, at most.

    Args:
        n: number of places, at least 0.
        weights: of the sources, positive; only their ratios matter.

    Returns:
        One count for each source; n in all.
    """
    if len(weights) == 1:
        return [n]
    half = len(weights) // 2
    first, second = weights[:half], weights[half:]
    share = Fraction(sum(first)) / sum(weights)
    count = floor(n * share + Fraction(1, 2))
    return counts_after(count, first) + counts_after(n - count, second)


def exact_weights(weights: Sequence[float], *, count: int) -> tuple[Fraction, ...]:
    """Weights as fractions of what their digits say: 0.7 is 7/10.

    Raises:
        ValueError: if there are not `count` of them, or one is not a finite number above 0.
    """
    if len(weights) != count:
        raise ValueError(f'got {len(weights)} weights {list(weights)} for {count} synthetic sources, expected one each')
    for weight in weights:
        if isinstance(weight, bool) or not (isinstance(weight, Real) and isfinite(weight) and weight > 0):
            raise ValueError(f'got synthetic weight {weight!r}, expected a number above 0; leave the source out for 0')
    return tuple(Fraction(str(weight)) for weight in weights)


@dataclass(frozen=True)
class EndlessStream:
    """Endless passes over several sources, dealt out by weight.

    Of the first n places, source i has `counts_after(n, weights)[i]`. Each source goes through passes of its own: all
    of its images in a pseudo-random order, then all of them in another, and so on. Memory is O(1).

    Args:
        sizes: number of images of each source.
        weights: one for each source, as `exact_weights` makes them.
        seed: any integer; a pass over a source is a function of it, of the source's place in the list, of the number
            of the pass, and of the size.
    """

    sizes: tuple[int, ...]
    weights: tuple[Fraction, ...]
    seed: int

    def indices(self, first: int, count: int) -> list[Tensor]:
        """Indices (M_i,) int64 into each source at places first..first+count-1; the M_i add up to `count`."""
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
    """The real images of an epoch's batches: one pass over all of them, in a new pseudo-random order each epoch.

    Args:
        size: number of real images.
        per_batch: how many of them a full batch of all processes holds.
        seed: any integer.
    """

    size: int
    per_batch: int
    seed: int

    def count(self, step: int) -> int:
        """How many of them the batch of a step holds."""
        return max(0, min(self.per_batch, self.size - step * self.per_batch))

    def indices(self, epoch: int, step: int) -> Tensor:
        """Which images (`count(step)`,) int64 the batch of a step holds, in the order in which they are drawn."""
        first = step * self.per_batch
        return IndexPermutation(self.size, 'real', self.seed, epoch)(torch.arange(first, first + self.count(step)))


@dataclass(frozen=True)
class Rank:
    """The part of every batch that one of several processes takes.

    All batches are defined for all processes together. Number the images of a batch as they are drawn, real ones first:
    image c goes to process c mod W. The shares are disjoint and complete, their sizes differ by one at most, and so do
    the counts of each source in them.

    Args:
        rank: number of this process, 0 to world_size - 1.
        world_size: number of processes W, at least 1.

    Raises:
        ValueError: if a number is out of range.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f'got world_size={self.world_size!r}, expected at least 1')
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f'got rank={self.rank!r}, expected 0 to {self.world_size - 1}, below world_size')

    def rows(self, count: int, offset: int) -> Tensor:
        """Of `count` images drawn from one source after `offset` others of the batch: the numbers of this process's."""
        return torch.arange(count)[(self.rank - offset) % self.world_size::self.world_size]
