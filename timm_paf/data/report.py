"""What a source of images holds, in a line for people."""

import torch

from timm_paf.data.arrays import ConcatenatedImages, ImageSource, LabelledImages
from timm_paf.data.disk import SampleReport

__all__ = ['sample_report']


def sample_report(source: ImageSource) -> SampleReport | None:
    """What is known of a source's images and labels without reading more of them.

    Args:
        source: of several parts, their reports are added up.

    Returns:
        The report; None for a source that keeps none, such as one that decodes images while training.
    """
    if isinstance(source, LabelledImages):
        labels = source.labels.argmax(1) if source.soft else source.labels
        counts = torch.bincount(labels, minlength=source.num_classes)
        low, high = source.images.aminmax()
        return SampleReport(
            len(source), source.image_shape, _name(source.images), _name(source.labels),
            None if source.images.dtype == torch.uint8 else (float(low), float(high)), len(source),
            tuple(counts.tolist()))
    if isinstance(source, ConcatenatedImages):
        reports = [sample_report(part) for part in source.parts]
        return _joined([report for report in reports if report]) if all(reports) else None
    return getattr(source, 'report', None)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix('torch.')


def _joined(reports: list[SampleReport]) -> SampleReport:
    ranges = [report.pixel_range for report in reports if report.pixel_range is not None]
    return SampleReport(
        sum(report.images for report in reports), reports[0].image_shape,
        '+'.join(sorted({report.image_dtype for report in reports})),
        '+'.join(sorted({report.label_dtype for report in reports})),
        (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
        sum(report.sampled for report in reports),
        tuple(map(sum, zip(*(report.class_counts for report in reports), strict=True))))
