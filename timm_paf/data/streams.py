"""Indices of the images in a batch: exact counts from weighted sources, and the share of each process."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, isfinite

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
    """
    if len(weights) == 1:
        return [n]
    half = len(weights) // 2
    count = floor(n * Fraction(sum(weights[:half])) / sum(weights) + Fraction(1, 2))
    return counts_after(count, weights[:half]) + counts_after(n - count, weights[half:])


def exact_weights(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """Convert weights to fractions by their decimal digits: 0.7 is 7/10.

    Raises:
        ValueError: If one is not a finite number above 0.
    """
    for weight in weights:
        if not (isfinite(weight) and weight > 0):
            raise ValueError(f'got synthetic weight {weight!r}, expected a number above 0, or remove the source')
    return tuple(Fraction(str(weight)) for weight in weights)


def pass_indices(first: int, count: int, size: int, *key: int | str) -> Tensor:
    """Return the images at places first..first+count-1 of endless passes over a set, each in another order.

    Args:
        first: First place, at least 0.
        count: Number of places.
        size: Number of images in the set.
        key: Integers and strings that determine the orders, together with the size: pass p has the order
            `IndexPermutation(size, *key, p)`.

    Returns:
        Indices (count,) int64.
    """
    places = torch.arange(first, first + count)
    passes = places // size
    return torch.cat([places[:0], *(
        IndexPermutation(size, *key, number)(places[passes == number] % size) for number in passes.unique().tolist())])


def stream_indices(
    first: int, count: int, *, sizes: Sequence[int], weights: Sequence[Fraction], seed: int,
) -> list[Tensor]:
    """Return the images at places first..first+count-1 of an endless stream from several sources, shared by weight.

    Of the first n places, source i has `counts_after(n, weights)[i]`. Each source is read in passes.

    Args:
        first: First place, at least 0.
        count: Number of places.
        sizes: Number of images of each source.
        weights: One per source, as `exact_weights` returns them.
        seed: Any integer.

    Returns:
        Indices (M_i,) int64 into each source; the M_i add up to `count`.
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
