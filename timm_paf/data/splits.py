"""Stratified splits that never change: the order comes from a hash, not from the random numbers of a library."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, has_soft_labels
from timm_paf.data.classes import all_labels, class_names
from timm_paf.data.order import IndexPermutation, derive_seed
from timm_paf.data.report import SampleReport, sample_report


def stratified_split(labels: Tensor, sizes: Sequence[int], *, seed: int) -> tuple[Tensor, ...]:
    """Split a data set so that every part has the class frequencies of the whole.

    Each part takes a proportional share of the images per class that the parts before it left, rounded down or up
    (largest remainders, smaller class number first for equal ones). The order in a part is shuffled such that any
    prefix has nearly the class frequencies of the part: with classes of equal size, each count is within 2 images of
    its share. The result depends on the labels (N,), the sizes, which add up to N, and the seed alone. It is one
    (size,) int64 tensor of indices per part.
    """
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


class PartOfImages(ABC):
    """Some images of a source, read when they are asked for."""

    def __init__(self, source: ImageSource, size: int, *, name: str) -> None:
        self.source, self.name, self.soft, self._size = source, name, has_soft_labels(source), size
        self.num_classes, self.image_shape = source.num_classes, source.image_shape
        self.class_names = class_names(source)

    def __len__(self) -> int:
        """Number of images."""
        return self._size

    @abstractmethod
    def _places(self, indices: Tensor) -> Tensor:
        """Indices (B,) int64 in the source."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, for indices (B,) int64 in 0..len-1 of these images."""
        return self.source.take(self._places(indices.cpu()))

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of these images."""
        return all_labels(self.source)[self._places(torch.arange(len(self)))]

    @property
    def report(self) -> SampleReport | None:
        """That of the source, with the number of these images, and with their labels if it counts all labels."""
        report = sample_report(self.source)
        if report is None or report.sampled < report.images:
            return report and replace(report, images=len(self))
        counts = torch.bincount(self.class_numbers(), minlength=self.num_classes).tolist()
        return replace(report, images=len(self), sampled=len(self), class_counts=tuple(counts))


class SelectedImages(PartOfImages):
    """The images of a source at `indices` (M,) int64, with class numbers as labels."""

    def __init__(self, source: ImageSource, indices: Tensor, *, name: str) -> None:
        super().__init__(source, len(indices), name=name)
        self.soft, self.indices, self.labels = False, indices, all_labels(source)[indices]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, for indices (B,) int64 into the selection, with class numbers."""
        return super().take(indices)[0], self.labels[indices.cpu()]

    def class_numbers(self) -> Tensor:
        """Class numbers (M,) int64."""
        return self.labels

    def _places(self, indices: Tensor) -> Tensor:
        return self.indices[indices]


class ImagesWithout(PartOfImages):
    """The images of a source without those at `left_out` (M,) int64, each once; only these take memory."""

    def __init__(self, source: ImageSource, left_out: Tensor, *, name: str) -> None:
        super().__init__(source, len(source) - len(left_out), name=name)
        # image i of the rest comes after every left-out j with j - (number left out before j) <= i
        self._thresholds = left_out.sort().values - torch.arange(len(left_out))

    def _places(self, indices: Tensor) -> Tensor:
        return indices + torch.bucketize(indices, self._thresholds, right=True)
