"""Labelled images that stay in their file: `take` reads only the rows asked for."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from timm_paf.data.arrays import LabelledImages
from timm_paf.data.errors import BadArchive, DataChanged, errors_on_opening
from timm_paf.data.report import SampleReport, sample_indices
from timm_paf.data.stored import StoredArray

_ALL_LABELS = 1 << 25  # bytes of labels up to which opening reads all of them, and keeps them in the smallest dtype
_SAMPLE = 1024  # rows that opening checks otherwise
_LABEL_CHUNK = 1 << 20  # bytes of labels read at a time by `class_numbers`
_SUM_TOLERANCE = 2e-3  # of a row of soft labels; float16 is this inexact


class DiskImages:
    """Images and labels in uncompressed arrays on disk.

    Opening checks the headers and a fixed pseudo-random sample. `take` checks what it reads, so that no batch contains
    a label or a pixel out of range. Memory does not grow with the number of images. Copies in other processes (forked
    or pickled) read independently.

    Args:
        pixels: Rows of images, uint8 or floats: in [0, 1], or in [0, 255] if the sample has a value above 1.
        targets: (N,) integers in 0..num_classes-1, or (N, num_classes) floats: rows of probabilities.
        layout: Axes of one stored row, a permutation of 'CHW'.
        num_classes: Number of classes K.
        name: Short name for messages.

    Raises:
        ValueError: If the sample has something else.
    """

    def __init__(
        self, pixels: StoredArray, targets: StoredArray, *, layout: str, num_classes: int, name: str,
    ) -> None:
        assert sorted(layout) == ['C', 'H', 'W'] and pixels.shape[0] == targets.shape[0]
        self.pixels, self.targets, self.num_classes, self.name = pixels, targets, num_classes, name
        self._axes = tuple(1 + layout.index(axis) for axis in 'CHW')
        channels, height, width = (pixels.shape[axis] for axis in self._axes)
        self.image_shape = channels, height, width
        self._limit = 1  # largest value of a pixel stored as float
        self._labels: np.ndarray | None = None
        with errors_on_opening():
            self.report = self._check_sample()

    def __len__(self) -> int:
        """Number of images."""
        return self.pixels.shape[0]

    @property
    def soft(self) -> bool:
        """Whether labels are rows of probabilities."""
        return len(self.targets.shape) == 2

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read images and labels.

        Args:
            indices: (B,) int64 in 0..N-1, on any device.

        Returns:
            Images (B, C, H, W), uint8, or float32 in [0, 1] if stored as floats. Labels (B,) int64, or soft labels
            (B, K) float32 with rows that sum to 1. Both are on the CPU.

        Raises:
            IndexError: If an index is outside 0..N-1.
            DataChanged: If a file changed after opening, or has a value out of range at an index.
        """
        wanted = indices.cpu().numpy().astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f'{self.name}: index outside 0..{len(self) - 1}')
        pixels = self.pixels.rows(wanted)
        if self._labels is None:
            targets = self.targets.rows(wanted)
        else:
            self.targets.check()
            targets = self._labels[wanted]
        if fault := self.pixel_fault(pixels, wanted) or self.target_fault(targets, wanted):
            raise DataChanged(fault)
        return self._to_images(pixels), self._to_labels(targets)

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images, the most likely class for soft labels; reads no image.

        Raises:
            DataChanged: If the file changed after opening, or has a label out of range.
        """
        if self._labels is not None:
            return torch.from_numpy(self._labels.astype(np.int64))
        numbers = []
        for start, targets in self.targets.chunks(_LABEL_CHUNK):
            if fault := self.target_fault(targets, np.arange(start, start + len(targets))):
                raise DataChanged(fault)
            numbers.append(self._class_numbers(targets))
        return torch.from_numpy(np.concatenate(numbers))

    def load(self) -> LabelledImages:
        """Read all images and labels into memory, and check them and their checksums.

        Raises:
            ValueError: If a file is damaged or a value is out of range.
        """
        everything = np.arange(len(self))
        with errors_on_opening():
            pixels, targets = self.pixels.load(), self.targets.load()
        if fault := self.pixel_fault(pixels, everything) or self.target_fault(targets, everything):
            raise BadArchive(fault)
        return LabelledImages(self._to_images(pixels), self._to_labels(targets), self.num_classes, self.name)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shapes, dtypes, checksums, number of classes and a fixed sample of rows.

        It does not cover all pixels, since that needs reading all of them: see `verify_archive`.
        """
        digest = hashlib.sha256()
        for array in (self.pixels, self.targets):
            digest.update(f'{array.shape} {array.dtype.str} {array.crc}'.encode())
            digest.update(array.rows(sample_indices(len(self), 64)).tobytes())
        digest.update(f'{self._axes} {self.num_classes}'.encode())
        return digest.hexdigest()

    def pixel_fault(self, pixels: np.ndarray, indices: np.ndarray) -> str | None:
        """A message about the first of these images that has a pixel out of range, or None."""
        if pixels.dtype == np.uint8 or not pixels.size:
            return None
        flat = pixels.reshape(len(pixels), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        bad = ~((low >= 0) & (high <= self._limit))  # true for NaN
        if not bad.any():
            return None
        first = int(np.argmax(bad))
        return (
            f'{self.pixels.where} has pixels from {low[first]:g} to {high[first]:g} at index {int(indices[first])}, '
            f'expected finite values in [0, {self._limit}]; scale them to [0, 1] or [0, 255], do not normalise'
        )

    def target_fault(self, targets: np.ndarray, indices: np.ndarray) -> str | None:
        """A message about the first of these labels that is out of range, or None."""
        if not targets.size:
            return None
        if self.soft:
            sums = targets.astype(np.float64).sum(axis=1)
            bad = ~((targets.min(axis=1) >= 0) & (abs(sums - 1) <= _SUM_TOLERANCE))
            if not bad.any():
                return None
            first = int(np.argmax(bad))
            row = np.array2string(targets[first], precision=3, threshold=4).replace('\n', '')
            return (
                f'{self.targets.where} has the row {row} at index {int(indices[first])}, expected probabilities '
                f'that sum to 1 (soft labels)'
            )
        low, high = int(targets.min()), int(targets.max())
        if low >= 0 and high < self.num_classes:
            return None
        first = int(np.argmax((targets < 0) | (targets >= self.num_classes)))
        return (
            f'{self.targets.where} has values from {low} to {high}, expected 0 to {self.num_classes - 1} (first wrong '
            f'value at index {int(indices[first])}); is this archive for another data set?'
        )

    def _check_sample(self) -> SampleReport:
        count = len(self)
        sample = sample_indices(count, _SAMPLE)
        bounds = None
        if self.pixels.dtype == np.uint8:
            checked = sample[[0, -1]]  # shows that the file is readable at both ends
            pixels = self.pixels.rows(checked)
        else:
            checked = sample[::4]
            pixels = self.pixels.rows(checked)
            bounds = float(pixels.min()), float(pixels.max())
            self._limit = 255 if bounds[1] > 1 else 1
        if self.targets.row_bytes * count <= _ALL_LABELS:
            sample, targets = np.arange(count), self.targets.range(0, count)
        else:
            targets = self.targets.rows(sample)
        if fault := self.pixel_fault(pixels, checked) or self.target_fault(targets, sample):
            raise BadArchive(fault)
        numbers = self._class_numbers(targets)
        if len(targets) == count and not self.soft:
            self._labels = numbers.astype(np.min_scalar_type(self.num_classes - 1))
        counts = tuple(np.bincount(numbers, minlength=self.num_classes).tolist())
        return SampleReport(
            count, self.image_shape, str(self.pixels.dtype), str(self.targets.dtype), bounds, len(targets), counts)

    def _class_numbers(self, targets: np.ndarray) -> np.ndarray:
        return targets.argmax(axis=1) if self.soft else targets.astype(np.int64)

    def _to_images(self, pixels: np.ndarray) -> Tensor:
        if pixels.dtype != np.uint8:
            # float16 would lose bits of x / 255
            exact = pixels.astype(np.result_type(pixels, np.float32).newbyteorder('='))
            pixels = (exact / self._limit).astype(np.float32)
        return torch.from_numpy(pixels).permute(0, *self._axes)

    def _to_labels(self, targets: np.ndarray) -> Tensor:
        if self.soft:
            exact = targets.astype(np.float64)
            return torch.from_numpy((exact / exact.sum(axis=1, keepdims=True)).astype(np.float32))
        return torch.from_numpy(targets.astype(np.int64))
