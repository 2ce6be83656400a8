"""Labelled images that stay in their file: `take` reads only the rows asked for."""

import numpy as np
import torch
from torch import Tensor

from timm_paf.data.arrays import LabelledImages, checked_indices
from timm_paf.data.errors import DataChanged, errors_on_opening
from timm_paf.data.report import SampleReport, sample_indices
from timm_paf.data.stored import Progress, StoredArray

_ALL_LABELS = 1 << 25  # bytes of labels up to which opening reads all of them, and keeps them in the smallest dtype
_SAMPLE = 1024  # rows that opening checks otherwise
_LABEL_CHUNK = 1 << 20  # bytes of labels read at a time by `class_numbers`
_SUM_TOLERANCE = 2e-3  # of a row of soft labels; float16 is this inexact


class DiskImages:
    """Images and labels in uncompressed arrays on disk.

    Opening checks a fixed pseudo-random sample and raises ValueError. `take` checks what it reads, so that no batch
    contains a label or a pixel out of range. Memory does not grow with the number of images. Copies in other processes
    (forked or pickled) read independently.

    Args:
        pixels: Images, with the axis N first, uint8 or floats: in [0, 1], or in [0, 255] if the sample has a value
            above 1.
        targets: (N,) integers in 0..num_classes-1, or (N, num_classes) floats: rows of probabilities.
        num_classes: Number of classes K.
        name: Short name for messages.
        class_names: Names of the classes, if they have names.
    """

    def __init__(
        self, pixels: StoredArray, targets: StoredArray, *, num_classes: int, name: str,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.pixels, self.targets, self.num_classes, self.name = pixels, targets, num_classes, name
        self.class_names = class_names
        self.soft = len(targets.shape) == 2
        self._axes = tuple(pixels.axes.index(axis) for axis in 'CHW')
        channels, height, width = (pixels.shape[axis] for axis in self._axes)
        self.image_shape = channels, height, width
        self._limit = 1  # largest value of a pixel stored as float
        self._labels: np.ndarray | None = None
        with errors_on_opening():
            self.report = self._check_sample()

    def __len__(self) -> int:
        """Number of images."""
        return self.pixels.shape[0]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read images and labels, as `ImageSource.take`, on the CPU; raises `DataChanged` if a file has changed."""
        wanted = checked_indices(indices, self).numpy()
        pixels = self.pixels.rows(wanted)
        self._check_pixels(pixels, wanted)
        if self._labels is None:
            targets = self.targets.rows(wanted)
            self._check_targets(targets, wanted)
        else:
            self.targets.check()
            targets = self._labels[wanted]
        return self._to_images(pixels), self._to_labels(targets)

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images, the most likely class for soft labels; reads no image."""
        if self._labels is not None:
            return torch.from_numpy(self._labels.astype(np.int64))
        numbers = []
        for start, targets in self.targets.chunks(_LABEL_CHUNK):
            self._check_targets(targets, np.arange(start, start + len(targets)))
            numbers.append(targets.argmax(1) if self.soft else targets.astype(np.int64))
        return torch.from_numpy(np.concatenate(numbers))

    def load(self) -> LabelledImages:
        """Read all images and labels into memory; raises ValueError if a file is damaged or a value out of range."""
        with errors_on_opening():
            self.verify()
            pixels, targets = (array.range(0, len(self)) for array in (self.pixels, self.targets))
        return LabelledImages(
            self._to_images(pixels), self._to_labels(targets), self.num_classes, self.name, self.class_names)

    def verify(self, progress: Progress | None = None) -> None:
        """Read and check all bytes, in a few megabytes of memory; raises `DataChanged` at the first error."""
        for array, check in ((self.targets, self._check_targets), (self.pixels, self._check_pixels)):
            for start, rows in array.chunks():
                check(rows, np.arange(start, start + len(rows)))
                if progress:
                    done = (start + len(rows)) * array.row_bytes
                    progress(f'checking {array.key or array.path.name}', done, array.nbytes)

    def _check_pixels(self, pixels: np.ndarray, indices: np.ndarray) -> None:
        """Raise `DataChanged` about the first of these images that has a pixel out of range."""
        if pixels.dtype == np.uint8:
            return
        low, high = pixels.min((1, 2, 3)), pixels.max((1, 2, 3))
        bad = ~((low >= 0) & (high <= self._limit))  # true for NaN
        if bad.any():
            first = bad.argmax()
            raise DataChanged(
                f'{self.pixels.where} has pixels from {low[first]:g} to {high[first]:g} at index {indices[first]}, '
                f'expected finite values in [0, {self._limit}]; scale them to [0, 1] or [0, 255], do not normalise')

    def _check_targets(self, targets: np.ndarray, indices: np.ndarray) -> None:
        """Raise `DataChanged` about the first of these labels that is out of range."""
        if self.soft:
            sums = targets.sum(1, dtype=np.float64)
            bad = ~((targets.min(1) >= 0) & (abs(sums - 1) <= _SUM_TOLERANCE))
        else:
            bad = (targets < 0) | (targets >= self.num_classes)
        if bad.any():
            first = bad.argmax()
            found, expected = f'values from {targets.min()} to {targets.max()}', f'0 to {self.num_classes - 1}'
            if self.soft:
                found = f'the row {np.array2string(targets[first], precision=3, threshold=4)}'.replace('\n', '')
                expected = 'probabilities that sum to 1 (soft labels)'
            raise DataChanged(
                f'{self.targets.where} has {found} (first wrong one at index {indices[first]}), expected {expected}; '
                f'is this archive for another data set?')

    def _check_sample(self) -> SampleReport:
        count = len(self)
        sample = sample_indices(count, _SAMPLE)
        if self.pixels.dtype == np.uint8:
            self.pixels.rows(sample[[0, -1]])  # shows that the file is readable at both ends
        else:
            checked = sample[::4]
            pixels = self.pixels.rows(checked)
            self._limit = 255 if pixels.max() > 1 else 1
            self._check_pixels(pixels, checked)
        complete = self.targets.nbytes <= _ALL_LABELS
        targets = self.targets.range(0, count) if complete else self.targets.rows(sample)
        self._check_targets(targets, np.arange(count) if complete else sample)
        numbers = targets.argmax(1) if self.soft else targets.astype(np.int64)
        if len(targets) == count and not self.soft:
            self._labels = numbers.astype(np.min_scalar_type(self.num_classes - 1))
        counts = tuple(np.bincount(numbers, minlength=self.num_classes).tolist())
        return SampleReport(
            count, self.image_shape, str(self.pixels.dtype), str(self.targets.dtype), len(targets), counts)

    def _to_images(self, pixels: np.ndarray) -> Tensor:
        if pixels.dtype != np.uint8:
            # float16 would lose bits of x / 255
            exact = pixels.astype(np.result_type(pixels, np.float32).newbyteorder('='))
            pixels = (exact / self._limit).astype(np.float32)
        return torch.from_numpy(pixels).permute(0, *self._axes)

    def _to_labels(self, targets: np.ndarray) -> Tensor:
        if self.soft:
            exact = targets.astype(np.float64)
            return torch.from_numpy((exact / exact.sum(1, keepdims=True)).astype(np.float32))
        return torch.from_numpy(targets.astype(np.int64))
