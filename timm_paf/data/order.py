"""Seeds for named purposes, and pseudo-random permutations of any size that need no memory."""

import hashlib
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_paf._random import splitmix64

_ROUNDS = 16  # with 8, ranges of five or six elements are measurably not uniform; 16 costs 0.2 ms per batch


def derive_seed(*parts: int | str) -> int:
    """Derive a seed for one purpose from parts such as ('shuffle', seed, epoch, step).

    Different parts give unrelated seeds, also for neighbouring numbers, so that no two streams are alike by accident.
    The value does not depend on the platform or on library versions.

    Args:
        parts: Integers of any size and strings.

    Returns:
        An integer in 0..2**63-1.
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

    Args:
        size: Number of elements, 1 to 2**62.
        key: Integers and strings that determine the permutation, together with the size; see `derive_seed`.

    Raises:
        ValueError: If the size is out of range.

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
        """Return the elements (M,) int64 at positions (M,) int64 of the permuted order, all on the CPU.

        Raises:
            IndexError: If a position is not in 0..size-1.
        """
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


def _hash(parts: tuple[int | str, ...], *, size: int) -> bytes:
    # repr keeps 1 and '1' apart, and the separator keeps (1, 23) and (12, 3) apart
    return hashlib.shake_256('/'.join(repr(part) for part in parts).encode()).digest(size)
