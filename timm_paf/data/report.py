"""Summary of an image source: sizes, types and class counts, known without reading all of it."""

from dataclasses import dataclass

import numpy as np
import torch

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.order import derive_seed


@dataclass(frozen=True)
class SampleReport:
    """Properties of an image source, from its headers and a fixed pseudo-random sample; `str` gives one line."""

    images: int  # how many
    image_shape: tuple[int, int, int]  # C, H, W
    image_dtype: str  # as stored
    label_dtype: str
    sampled: int  # number of labels that were read; equal to `images` if it was all of them
    class_counts: tuple[int, ...]  # number of labels per class among those; soft ones count for their largest entry

    def __str__(self) -> str:
        seen = np.flatnonzero(self.class_counts)
        missing = len(self.class_counts) - len(seen)
        least, most = (100 * pick(self.class_counts) / self.sampled for pick in (min, max))
        sample = 'all labels' if self.sampled == self.images else f'a sample of {self.sampled} labels'
        return (
            f'{self.images} images {"x".join(map(str, self.image_shape))} {self.image_dtype}, '
            f'{self.label_dtype} labels from {seen[0]} to {seen[-1]}; in {sample}, the rarest of '
            f'{len(self.class_counts)} classes has {least:.1f} %, the most frequent {most:.1f} %'
            f'{f", and {missing} do not occur" if missing else ""}')


def sample_report(source: ImageSource) -> SampleReport | None:
    """Summarise a source without reading more of its images; the reports of the parts of one source are added.

    Returns None for a source without a report, such as one that decodes images during training.
    """
    if isinstance(source, ConcatenatedImages):
        reports = [report for part in source.parts if (report := sample_report(part))]
        if len(reports) < len(source.parts):
            return None
        counts = np.sum([report.class_counts for report in reports], axis=0)
        image_dtype, label_dtype = (
            '+'.join(sorted({getattr(report, name) for report in reports})) for name in ('image_dtype', 'label_dtype'))
        return SampleReport(
            len(source), source.image_shape, image_dtype, label_dtype, sum(report.sampled for report in reports),
            tuple(counts.tolist()))
    if not isinstance(source, LabelledImages):
        return getattr(source, 'report', None)
    labels = source.labels.argmax(1) if source.soft else source.labels
    image_dtype, label_dtype = (str(data.dtype).removeprefix('torch.') for data in (source.images, source.labels))
    return SampleReport(
        len(source), source.image_shape, image_dtype, label_dtype, len(source),
        tuple(torch.bincount(labels, minlength=source.num_classes).tolist()))


def source_notes(source: object) -> list[str]:
    """Lines about what was left out of a source, such as files that are no images."""
    parts = [*getattr(source, 'parts', ()), *(
        part for name in ('source', 'dataset') if (part := getattr(source, name, None)) is not None)]
    return [*getattr(source, 'notes', ()), *(line for part in parts for line in source_notes(part))]


def sample_indices(count: int, size: int) -> np.ndarray:
    """A fixed pseudo-random sample, (min(count, size),) int64, ascending, with the first and last index.

    It has one index from each of `size` equal intervals. This gives each class its share of the sample, since archives
    are often sorted by class.
    """
    if count <= size:
        return np.arange(count)
    edges = np.arange(size + 1) * count // size
    spread = np.random.Generator(np.random.PCG64(derive_seed('sample', count, size))).random(size)
    sample = edges[:-1] + (spread * np.diff(edges)).astype(np.int64)
    sample[0], sample[-1] = 0, count - 1
    return sample
