"""Reports of image sources: counts equal those of the labels, for every kind of source."""
import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, disk, open_archive, sample_report, save_archive
from timm_paf.data.report import sample_indices

IMAGES = torch.arange(7 * 3 * 4 * 4, dtype=torch.uint8).reshape(7, 3, 4, 4)
LABELS = torch.tensor([0, 0, 2, 2, 2, 1, 2])


SOFT = torch.nn.functional.one_hot(LABELS, 4).float() * 0.7 + 0.075
MEMORY = LabelledImages(IMAGES, LABELS, 4, 'memory')


def on_disk(tmp_path):
    save_archive(tmp_path / 'a.npz', MEMORY)
    return open_archive(tmp_path / 'a.npz', num_classes=4, mapped=True)


@pytest.mark.parametrize('make', [lambda path: MEMORY, on_disk], ids=['memory', 'disk'])
def test_counts(tmp_path, make):
    report = sample_report(make(tmp_path))
    assert report.images == 7 and report.image_shape == (3, 4, 4) and report.image_dtype == 'uint8'
    assert report.class_counts == (2, 1, 4, 0)
    assert '7 images 3x4x4 uint8' in str(report) and 'labels from 0 to 2' in str(report)
    assert 'rarest of 4 classes has 0.0 %, the most frequent 57.1 %, and 1 do not occur' in str(report)


def test_parts_are_added_up(tmp_path):
    report = sample_report(
        ConcatenatedImages([on_disk(tmp_path), LabelledImages(IMAGES / 255, SOFT, 4, 'soft'), MEMORY]))
    assert report.images == 21 and report.class_counts == (6, 3, 12, 0)
    assert report.image_dtype == 'float32+uint8' and report.label_dtype == 'float32+int64'
    assert sample_report(object()) is None


def test_the_report_of_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, '_ALL_LABELS', 0)
    monkeypatch.setattr(disk, '_SAMPLE', 30)
    images = np.random.RandomState(0).randint(0, 256, (300, 5, 4, 3)).astype(np.float32)
    np.savez(tmp_path / 'a.npz', image=images, label=np.arange(300) * 3 // 300)
    report = sample_report(open_archive(tmp_path / 'a.npz', num_classes=3, mapped=True))
    assert report.class_counts == (10, 10, 10) and (report.images, report.sampled) == (300, 30)
    assert 'a sample of 30 labels' in str(report)


@pytest.mark.parametrize('count', [1, 5, 1024, 1025, 1026, 5000, 10**8])
def test_the_sample(count):
    sample = sample_indices(count, 1024)
    assert len(sample) == min(count, 1024) and (np.diff(sample) > 0).all()
    assert sample[0] == 0 and sample[-1] == count - 1
    assert np.array_equal(sample, sample_indices(count, 1024))
    if count > 1e6:  # one index per interval, so that a class-sorted archive shows each class in proportion
        assert (np.bincount(sample * 10 // count) >= 102).all()
