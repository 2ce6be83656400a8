"""Stratified splits that never change: the order comes from a hash, not from the random numbers of a library."""

from collections.abc import Sequence

import torch
from torch import Tensor

from timm_paf.data.order import IndexPermutation, derive_seed


def stratified_split(labels: Tensor, sizes: Sequence[int], *, seed: int) -> tuple[Tensor, ...]:
    """Split a data set so that every part has the class frequencies of the whole.

    Each part takes a proportional share of the images per class that the parts before it left, rounded down or up
    (largest remainders, smaller class number first for equal ones). The order in a part is shuffled such that any
    prefix has nearly the class frequencies of the part: with classes of equal size, each count is within 2 images of
    its share. The result depends on the labels (N,), the sizes and the seed alone. It is one (size,) int64 tensor of
    indices per part. Raises ValueError if the sizes do not add up to N or one is below 1.
    """
    if any(size < 1 for size in sizes) or sum(sizes) != len(labels):
        raise ValueError(f'got sizes {list(sizes)}, expected sizes of at least 1 that add up to {len(labels)} labels')
    ranks = [derive_seed('split', seed, index) for index in range(len(labels))]
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        by_class.setdefault(label, []).append(index)
    rest = {label: sorted(by_class[label], key=ranks.__getitem__) for label in sorted(by_class)}
    parts = []
    for size in sizes:
        quotas = _proportional({label: len(indices) for label, indices in rest.items()}, size)
        chosen = {label: indices[:quotas[label]] for label, indices in rest.items()}
        rest = {label: indices[quotas[label]:] for label, indices in rest.items()}
        parts.append(torch.tensor(_interleaved(list(chosen.values()), ranks)))
    return tuple(parts)


def held_out(labels: Tensor, size: int | None, *, seed: int) -> Tensor:
    """Choose a stratified sample of a large data set: indices (size,) int64 in shuffled order, each once.

    Each class contributes a proportional share, rounded as in `stratified_split`. The result depends on labels, size
    and seed alone.

    Args:
        labels: (N,) int64 class numbers, at least 0.
        size: Size of the sample, 1 to N - 1; raises ValueError otherwise. If None, a tenth of N, at most 1024.
        seed: Any integer.
    """
    if size is None:
        size = max(1, min(1024, len(labels) // 10))
    if not 1 <= size < len(labels):
        raise ValueError(f'val_size = {size}: expected 1 to {len(labels) - 1}, as there are {len(labels)} images')
    counts = {label: count for label, count in enumerate(torch.bincount(labels).tolist()) if count}
    chosen = [
        (labels == label).nonzero()[:, 0][
            IndexPermutation(counts[label], 'held out', seed, label)(torch.arange(quota))]
        for label, quota in _proportional(counts, size).items()]
    order = IndexPermutation(size, 'held out', seed, 'order')(torch.arange(size))
    return torch.cat(chosen)[order]


def _proportional(counts: dict[int, int], size: int) -> dict[int, int]:
    total = sum(counts.values())
    quotas = {label: size * count // total for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(size * counts[label] % total), label))
    for label in by_remainder[:size - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _interleaved(classes: list[list[int]], ranks: list[int]) -> list[int]:
    """Order in which image i of a class of n has a pseudo-random relative position in [i/n, (i+1)/n)."""
    places = [
        ((place + ranks[index] / 2**63) / len(members), index)
        for members in classes for place, index in enumerate(members)]
    return [index for _, index in sorted(places)]
