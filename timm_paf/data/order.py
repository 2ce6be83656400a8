"""Which image comes when: seeds, permutations without a table, exact shares of sources, the share of each process."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from math import floor, isfinite, isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_paf._random import splitmix64

_ROUNDS = 16  # with 8, ranges of five or six elements are measurably not uniform; 16 costs 0.2 ms per batch


def derive_seed(*parts: int | str) -> int:
    """Derive a seed for one purpose from parts such as ('shuffle', seed, epoch, step).

    Different parts, integers of any size and strings, give unrelated seeds, also for neighbouring numbers. The value is
    in 0..2**63-1 and does not depend on the platform or on library versions.
    """
    return int.from_bytes(_hash(parts, size=8), 'little') >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a CPU `torch.Generator` with the seed `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


class IndexPermutation:
    """A pseudo-random permutation of 0..size-1 that is computed at any position, without a table.

    An index is written as a pair (l, r) with l < a and r < b, where a is about b and a * b is the smallest such product
    of at least `size`. Feistel rounds add a keyed hash of one half to the other,

        l <- (l + hash(r)) mod a,    r <- (r + hash(l)) mod b.

    Each round can be inverted, so this is a bijection on 0..a*b-1. Results of `size` or more go through the rounds
    again until they are below it (cycle walking), which gives a bijection on 0..size-1. There are fewer than a such
    results, so this is rare. Memory and time are O(1) per index.

    The size is 1 to 2**62, else ValueError is raised; it determines the permutation together with the key, integers and
    strings (see `derive_seed`).

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), for the generalised Feistel
    network and cycle walking. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). This is for
    shuffling, not for secrets.
    """

    def __init__(self, size: int, *key: int | str) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f'got size={size}, expected 1 to 2**62')
        self.size = size
        self._left = np.uint64(isqrt(size - 1) + 1)
        self._right = np.uint64(-(-size // int(self._left)))
        self._keys = np.frombuffer(_hash(key, size=8 * _ROUNDS), dtype='<u8').astype(np.uint64)

    def __call__(self, positions: Tensor) -> Tensor:
        """Elements (M,) int64 at positions (M,) int64, on the CPU; raises IndexError for one outside 0..size-1."""
        outside = positions[(positions < 0) | (positions >= self.size)]
        if len(outside):
            raise IndexError(f'got position {int(outside[0])}, expected 0 to {self.size - 1}')
        values = self._rounds(positions.numpy().astype(np.uint64))
        while (beyond := values >= self.size).any():
            values[beyond] = self._rounds(values[beyond])
        return torch.from_numpy(values.astype(np.int64))

    def _rounds(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values // self._right, values % self._right
        for first, second in self._keys.reshape(-1, 2):
            left = (left + splitmix64(right + first) % self._left) % self._left
            right = (right + splitmix64(left + second) % self._right) % self._right
        return left * self._right + right


def counts_after(n: int, weights: Sequence[Fraction]) -> list[int]:
    """Count how many of the first n places of a stream belong to each of several sources.

    Of n places, the first half of the sources has floor(n * W1 / (W1 + W2) + 1/2), where W1 and W2 are the sums of the
    weights of the halves; each half divides its places in the same way. The counts add up to n and never decrease as n
    grows (which largest remainders do not guarantee), so the places of any section of the stream are known without the
    stream before it. Each count differs from its exact share by at most half an image per split.
    """
    if len(weights) == 1:
        return [n]
    half = len(weights) // 2
    count = floor(n * Fraction(sum(weights[:half])) / sum(weights) + Fraction(1, 2))
    return counts_after(count, weights[:half]) + counts_after(n - count, weights[half:])


def exact_weights(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """Convert weights to fractions by their decimal digits (0.7 is 7/10); raises ValueError if one is not above 0."""
    for weight in weights:
        if not (isfinite(weight) and weight > 0):
            raise ValueError(f'got synthetic weight {weight!r}, expected a number above 0, or remove the source')
    return tuple(Fraction(str(weight)) for weight in weights)


def pass_indices(first: int, count: int, size: int, *key: int | str) -> Tensor:
    """Return the images (count,) int64 at places first..first+count-1 of endless passes over a set of `size` images.

    Each pass has another order: pass p has `IndexPermutation(size, *key, p)`.
    """
    places = torch.arange(first, first + count)
    passes = places // size
    return torch.cat([places[:0], *(
        IndexPermutation(size, *key, number)(places[passes == number] % size) for number in passes.unique().tolist())])


def stream_indices(
    first: int, count: int, *, sizes: Sequence[int], weights: Sequence[Fraction], seed: int,
) -> list[Tensor]:
    """Return the images at places first..first+count-1 of an endless stream from several sources, shared by weight.

    Of the first n places, source i has `counts_after(n, weights)[i]`. Each source is read in passes. Returns indices
    (M_i,) int64 into each source; the M_i add up to `count`.
    """
    ends = zip(counts_after(first, weights), counts_after(first + count, weights), strict=True)
    return [
        pass_indices(begin, end - begin, size, 'synthetic', seed, source)
        for source, (size, (begin, end)) in enumerate(zip(sizes, ends, strict=True))]


def rank_rows(count: int, offset: int, *, rank: int, world_size: int) -> Tensor:
    """Return which of the `count` images of one source, after `offset` others in the batch, a process takes.

    Image c of a batch belongs to process c mod world_size. The shares are disjoint and complete; their sizes differ by
    at most one, and so do the counts of each source in them.
    """
    return torch.arange(count)[(rank - offset) % world_size::world_size]


def _hash(parts: tuple[int | str, ...], *, size: int) -> bytes:
    # repr keeps 1 and '1' apart, and the separator keeps (1, 23) and (12, 3) apart
    return hashlib.shake_256('/'.join(repr(part) for part in parts).encode()).digest(size)
