"""What is said of a source: counts against those taken from its labels, for every kind of source."""
import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, open_archive, sample_report, save_archive

IMAGES = torch.arange(7 * 3 * 4 * 4, dtype=torch.uint8).reshape(7, 3, 4, 4)
LABELS = torch.tensor([0, 0, 2, 2, 2, 1, 2])


def in_memory():
    return LabelledImages(IMAGES, LABELS, 4, 'memory')


def on_disk(tmp_path):
    save_archive(tmp_path / 'a.npz', in_memory())
    return open_archive(tmp_path / 'a.npz', num_classes=4, mapped=True)


def soft_floats():
    target = torch.nn.functional.one_hot(LABELS, 4).float() * 0.7 + 0.075
    return LabelledImages(IMAGES / 255, target, 4, 'soft')


@pytest.mark.parametrize('make', [lambda path: in_memory(), on_disk], ids=['memory', 'disk'])
def test_counts(tmp_path, make):
    report = sample_report(make(tmp_path))
    assert report.images == 7 and report.image_shape == (3, 4, 4) and report.image_dtype == 'uint8'
    assert report.class_counts == (2, 1, 4, 0) and report.pixel_range is None
    assert '7 images 3x4x4 uint8' in str(report) and 'labels from 0 to 2' in str(report)
    assert 'rarest of 4 classes has 0.0 %, the most frequent 57.1 %, and 1 do not occur' in str(report)


def test_parts_are_added_up(tmp_path):
    report = sample_report(ConcatenatedImages([on_disk(tmp_path), soft_floats(), in_memory()]))
    assert report.images == 21 and report.class_counts == (6, 3, 12, 0)
    assert report.image_dtype == 'float32+uint8' and report.label_dtype == 'float32+int64'
    np.testing.assert_allclose(report.pixel_range, (0, 1))  # uint8 wraps: 336 values hold every one from 0 to 255


def test_a_source_that_keeps_no_report():
    class Other:
        pass

    assert sample_report(Other()) is None
