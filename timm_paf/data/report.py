"""Summary of an image source: sizes, types and class counts, known without reading all of it."""

from dataclasses import dataclass

import numpy as np
import torch

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.order import derive_seed


@dataclass(frozen=True)
class SampleReport:
    """Properties of an image source, from its headers and a fixed pseudo-random sample.

    `str(report)` is one line for people.

    Args:
        images: Number of images.
        image_shape: (C, H, W).
        image_dtype: As stored.
        label_dtype: As stored.
        pixel_range: Smallest and largest stored value in the sample; None if pixels are uint8.
        sampled: Number of labels that were read; equal to `images` if it was all of them.
        class_counts: Number of labels per class among those; a soft label counts for its largest entry.
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
        least, most = (100 * pick(self.class_counts) / self.sampled for pick in (min, max))
        sample = 'all labels' if self.sampled == self.images else f'a sample of {self.sampled} labels'
        return (
            f'{self.images} images {"x".join(map(str, self.image_shape))} {self.image_dtype}, '
            f'{self.label_dtype} labels from {seen[0]} to {seen[-1]}; in {sample}, the rarest of '
            f'{len(self.class_counts)} classes has {least:.1f} %, the most frequent {most:.1f} %'
            f'{f", and {missing} do not occur" if missing else ""}'
        )


def sample_report(source: ImageSource) -> SampleReport | None:
    """Summarise a source without reading more of its images.

    Args:
        source: Any source; the reports of the parts of a `ConcatenatedImages` are added.

    Returns:
        The report; None for a source without one, such as one that decodes images during training.
    """
    if isinstance(source, LabelledImages):
        labels = source.labels.argmax(1) if source.soft else source.labels
        low, high = source.images.aminmax()
        image_dtype, label_dtype = (str(data.dtype).removeprefix('torch.') for data in (source.images, source.labels))
        return SampleReport(
            len(source), source.image_shape, image_dtype, label_dtype,
            None if source.images.dtype == torch.uint8 else (float(low), float(high)), len(source),
            tuple(torch.bincount(labels, minlength=source.num_classes).tolist()))
    if isinstance(source, ConcatenatedImages):
        reports = [report for part in source.parts if (report := sample_report(part))]
        return _added(reports) if len(reports) == len(source.parts) else None
    return getattr(source, 'report', None)


def sample_indices(count: int, size: int) -> np.ndarray:
    """A fixed pseudo-random sample: one index from each of `size` equal intervals, with the first and last of all.

    Intervals give each class its share of the sample, since archives are often sorted by class.

    Returns:
        (min(count, size),) int64, ascending, without repetition.
    """
    if count <= size:
        return np.arange(count)
    edges = np.arange(size + 1) * count // size
    spread = np.random.Generator(np.random.PCG64(derive_seed('sample', count, size))).random(size)
    sample = edges[:-1] + (spread * np.diff(edges)).astype(np.int64)
    sample[0], sample[-1] = 0, count - 1
    return sample


def _added(reports: list[SampleReport]) -> SampleReport:
    ranges = [report.pixel_range for report in reports if report.pixel_range is not None]
    return SampleReport(
        sum(report.images for report in reports), reports[0].image_shape,
        '+'.join(sorted({report.image_dtype for report in reports})),
        '+'.join(sorted({report.label_dtype for report in reports})),
        (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
        sum(report.sampled for report in reports),
        tuple(map(sum, zip(*(report.class_counts for report in reports), strict=True))))
