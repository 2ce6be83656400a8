"""Labelled images that stay in their file: `take` reads the rows asked for and nothing else."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_paf.data.arrays import LabelledImages
from timm_paf.data.errors import BadArchive, DataChanged
from timm_paf.data.order import derive_seed
from timm_paf.data.stored import DiskFile, MemoryFile, StoredArray

_ALL_LABELS = 1 << 25  # bytes of labels up to which all are looked at on opening, and kept in as few bytes as will do
_SAMPLE = 1024  # rows that are looked at where not all are
_LABEL_CHUNK = 1 << 16  # labels that are read at a time where all are asked for
_SUM_TOLERANCE = 2e-3  # of a row of soft labels, stored as float16 at worst


@dataclass(frozen=True)
class SampleReport:
    """What opening an image source found out, from its headers and a fixed pseudo-random sample.

    Args:
        images: number of images (as of labels).
        image_shape: (C, H, W).
        image_dtype: as stored.
        label_dtype: as stored.
        pixel_range: least and greatest stored value in the sample; None where pixels are uint8.
        sampled: number of labels looked at; `images` if it was all of them.
        class_counts: labels of each class among those (soft ones count for their largest entry).
    """

    images: int
    image_shape: tuple[int, int, int]
    image_dtype: str
    label_dtype: str
    pixel_range: tuple[float, float] | None
    sampled: int
    class_counts: tuple[int, ...]

    def __str__(self) -> str:
        seen = [number for number, count in enumerate(self.class_counts) if count]
        missing = len(self.class_counts) - len(seen)
        least, most = (pick(self.class_counts) / self.sampled for pick in (min, max))
        sample = 'all labels' if self.sampled == self.images else f'a sample of {self.sampled} labels'
        return (
            f'{self.images} images {"x".join(map(str, self.image_shape))} {self.image_dtype}, '
            f'{self.label_dtype} labels from {seen[0]} to {seen[-1]}; in {sample} the rarest of '
            f'{len(self.class_counts)} classes has {100 * least:.1f} %, the most frequent {100 * most:.1f} %'
            f'{f", {missing} do not occur" if missing else ""}'
        )


class DiskImages:
    """Images and labels in uncompressed arrays on the disk, read in place as they are asked for.

    Opening looks at the headers and at a fixed pseudo-random sample; `take` checks what it reads, so no batch holds a
    label or a pixel that the sample missed. Memory does not grow with the number of images. Copies in other processes
    (forked or pickled) read for themselves.

    Args:
        pixels: rows of images, uint8 or floats; floats lie in [0, 1], or in [0, 255] if the sample goes beyond 1.
        targets: (N,) integers in 0..num_classes-1, or (N, num_classes) floats, rows of probabilities.
        layout: axes of one stored row, a permutation of 'CHW'.
        num_classes: number of classes K.
        name: short name for messages.
        files: the arrays' bytes, pixels and targets, where they are in memory; None to read them at their paths.

    Raises:
        ValueError: if the sample holds something else.
        FileNotFoundError: if a file is missing.
    """

    def __init__(
        self,
        pixels: StoredArray,
        targets: StoredArray,
        *,
        layout: str,
        num_classes: int,
        name: str,
        files: tuple[MemoryFile, MemoryFile] | None = None,
    ) -> None:
        assert sorted(layout) == ['C', 'H', 'W'] and pixels.shape[0] == targets.shape[0]
        self.pixels, self.targets, self.num_classes, self.name = pixels, targets, num_classes, name
        self._axes = tuple(1 + layout.index(axis) for axis in 'CHW')
        channels, height, width = (pixels.shape[axis] for axis in self._axes)
        self.image_shape = channels, height, width
        self.pixel_file: DiskFile | MemoryFile
        self.target_file: DiskFile | MemoryFile
        if files is not None:
            self.pixel_file, self.target_file = files
        else:
            self.pixel_file = DiskFile(pixels.path)
            self.target_file = self.pixel_file if targets.path == pixels.path else DiskFile(targets.path)
        self._scale = 1.
        self._labels: np.ndarray | None = None
        try:
            self.report = self._look()
        except DataChanged as error:
            raise BadArchive(str(error)) from error

    def __len__(self) -> int:
        """Number of images."""
        return self.pixels.shape[0]

    @property
    def soft(self) -> bool:
        """Whether labels are rows of probabilities."""
        return len(self.targets.shape) == 2

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read images and labels at some indices.

        Args:
            indices: (B,) int64 in 0..N-1, any device.

        Returns:
            Images (B, C, H, W), uint8 or, from float archives, float32 in [0, 1]; labels (B,) int64 or, soft,
            (B, K) float32 with rows that sum to 1. Both on the CPU.

        Raises:
            IndexError: if an index is outside 0..N-1.
            DataChanged: if a file changed since it was opened, or holds something out of range at an index.
        """
        wanted = indices.cpu().numpy().astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f'{self.name}: index outside 0..{len(self) - 1}')
        pixels = self.pixels.read_rows(self.pixel_file, wanted)
        if self._labels is not None:
            targets = self._labels[wanted]
        else:
            targets = self.targets.read_rows(self.target_file, wanted)
        # after reading, so that what was read is what was there on opening
        self.pixel_file.check()
        if self.target_file is not self.pixel_file:
            self.target_file.check()
        if fault := self.pixel_fault(pixels, wanted) or self.target_fault(targets, wanted):
            raise DataChanged(fault)
        return self._to_images(pixels), self._to_labels(targets)

    def class_numbers(self) -> Tensor:
        """Class numbers (N,) int64 of all images; of soft labels, the likeliest. Images are not read.

        Raises:
            DataChanged: if the file changed since it was opened, or holds a label out of range.
        """
        if self._labels is not None:
            return torch.from_numpy(self._labels.astype(np.int64))
        numbers = []
        for start, targets in self.targets.chunks(self.target_file, _LABEL_CHUNK):
            if fault := self.target_fault(targets, np.arange(start, start + len(targets))):
                raise DataChanged(fault)
            numbers.append(targets.argmax(axis=1) if self.soft else targets.astype(np.int64))
        self.target_file.check()
        return torch.from_numpy(np.concatenate(numbers))

    def load(self) -> LabelledImages:
        """All of it in memory; every byte is checked against the archive's checksums where it has them.

        Raises:
            ValueError: if something is damaged or out of range.
        """
        try:
            for array, file in ((self.pixels, self.pixel_file), (self.targets, self.target_file)):
                if array.checked and isinstance(file, DiskFile):
                    array.check_crc(file)
            images, labels = self.take(torch.arange(len(self)))
        except DataChanged as error:
            raise BadArchive(str(error)) from error
        return LabelledImages(images, labels, self.num_classes, self.name)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shapes, dtypes, class count and a fixed sample of rows; names and times are left out.

        Not a checksum of all pixels, for which all would have to be read: see `verify_archive`.
        """
        digest = hashlib.sha256()
        for array, file in ((self.pixels, self.pixel_file), (self.targets, self.target_file)):
            digest.update(f'{array.shape} {array.dtype.str} {array.checked and array.checked[2]}'.encode())
            digest.update(array.read_rows(file, sample_indices(len(self), 64)).tobytes())
        digest.update(f'{self._axes} {self.num_classes}'.encode())
        return digest.hexdigest()

    def pixel_fault(self, pixels: np.ndarray, indices: np.ndarray) -> str | None:
        """A message about the first image of these rows that is not in range, or None."""
        if pixels.dtype == np.uint8 or not pixels.size:
            return None
        flat = pixels.reshape(len(pixels), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        top = 255 if self._scale != 1 else 1
        bad = ~((low >= 0) & (high <= top))  # also true where there is a NaN
        if not bad.any():
            return None
        first = int(np.argmax(bad))
        index = int(indices[first])
        offset = self.pixels.offset + index * self.pixels.row_bytes
        place = f'index {index}' if self.pixels.origin else f'index {index} (offset {offset})'
        return (
            f'{self.pixels.where} has pixels from {low[first]:g} to {high[first]:g} at {place}, expected finite values '
            f'in [0, {top}]; '
            f'scale them to [0, 1] or [0, 255], do not normalise'
        )

    def target_fault(self, targets: np.ndarray, indices: np.ndarray) -> str | None:
        """A message about the first label of these rows that is not in range, or None."""
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
                f'{self.targets.where} has the row {row} at index {int(indices[first])}, expected '
                f'probabilities that sum to 1 (soft labels)'
            )
        low, high = int(targets.min()), int(targets.max())
        if low >= 0 and high < self.num_classes:
            return None
        first = int(np.argmax((targets < 0) | (targets >= self.num_classes)))
        return (
            f'{self.targets.where} has values from {low} to {high}, expected 0 to {self.num_classes - 1} (first wrong '
            f'one at index {int(indices[first])}); is this archive made for another data set?'
        )

    def _look(self) -> SampleReport:
        count, floats = len(self), self.pixels.dtype != np.uint8
        some = sample_indices(count, _SAMPLE)
        looked = some[::4] if floats else some[[0, -1]]  # of uint8, only that the file can be read at both its ends
        pixels = self.pixels.read_rows(self.pixel_file, looked)
        bounds = None
        if floats:
            bounds = float(pixels.min()), float(pixels.max())
            self._scale = 255. if bounds[1] > 1 else 1.
        if self.targets.row_bytes * count <= _ALL_LABELS:
            indices = np.arange(count)
            targets = self.targets.read_range(self.target_file, 0, count)
        else:
            indices, targets = some, self.targets.read_rows(self.target_file, some)
        if fault := self.pixel_fault(pixels, looked) or self.target_fault(targets, indices):
            raise BadArchive(fault)
        hard = targets.argmax(axis=1) if self.soft else targets.astype(np.int64)
        if len(targets) == count and not self.soft:
            self._labels = hard.astype(np.min_scalar_type(self.num_classes - 1))
        counts = tuple(np.bincount(hard, minlength=self.num_classes).tolist())
        return SampleReport(
            count, self.image_shape, str(self.pixels.dtype), str(self.targets.dtype), bounds, len(targets), counts)

    def _to_images(self, pixels: np.ndarray) -> Tensor:
        if pixels.dtype != np.uint8:
            # not in float16: x / 255 would lose bits
            exact = pixels.astype(np.result_type(pixels, np.float32).newbyteorder('='))
            pixels = (exact / self._scale).astype(np.float32)
        return torch.from_numpy(pixels).permute(0, *self._axes)

    def _to_labels(self, targets: np.ndarray) -> Tensor:
        if self.soft:
            exact = targets.astype(np.float64)
            return torch.from_numpy((exact / exact.sum(axis=1, keepdims=True)).astype(np.float32))
        return torch.from_numpy(targets.astype(np.int64))


def sample_indices(count: int, size: int) -> np.ndarray:
    """A fixed pseudo-random sample, one index from each of `size` equal stretches, with the first and the last of all.

    Stretches rather than free draws: archives are sorted by class, and so every class gets its share of the sample.

    Returns:
        (min(count, size),) int64, ascending, each index at most once.
    """
    if count <= size:
        return np.arange(count)
    edges = np.arange(size + 1) * count // size
    spread = np.random.Generator(np.random.PCG64(derive_seed('sample', count, size))).random(size)
    sample = edges[:-1] + (spread * np.diff(edges)).astype(np.int64)
    sample[0], sample[-1] = 0, count - 1
    return sample
