"""The hash behind every random number that is a function of its seed and position."""
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ['GOLDEN', 'splitmix64', 'to_int64']

GOLDEN = 0x9E3779B97F4A7C15  # step between the inputs of SplitMix64
_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1

Words = TypeVar('Words', int, NDArray[np.uint64], Tensor)


def to_int64(number: int) -> int:
    """The number modulo 2**64, as a signed 64-bit integer."""
    number &= _MASK
    return number - 2**64 if number >= 2**63 else number


def splitmix64(words: Words) -> Words:
    """Scramble 64-bit words: a bijection whose outputs look random for consecutive inputs.

    Args:
        words: An int from 0 to 2**64 - 1, a uint64 array, or an int64 tensor (the same bits as signed numbers).

    Returns:
        The scrambled words, of the same type.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA
    2014).
    """
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        factor = to_int64(multiplier) if isinstance(words, Tensor) else multiplier
        words = (words ^ _shift_right(words, shift)) * factor
        if isinstance(words, int):  # arrays and tensors wrap around by themselves
            words &= _MASK
    return words ^ _shift_right(words, 31)


def _shift_right(words: Words, by: int) -> Words:
    if isinstance(words, Tensor):  # torch copies the sign bit; the mask clears these copies
        return (words >> by) & (2**(64 - by) - 1)
    if isinstance(words, np.ndarray):
        return words >> np.uint64(by)
    return words >> by
