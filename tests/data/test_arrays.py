"""Sets of labelled images: what they refuse, and what they hand out."""

import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, to_unit_range
from timm_paf.data.arrays import label_distribution

FLOATS = torch.rand(4, 1, 3, 2, generator=torch.Generator().manual_seed(0))
BYTES = torch.arange(24, dtype=torch.uint8).reshape(4, 1, 3, 2)
LABELS = torch.tensor([0, 1, 2, 1])
SOFT = torch.tensor([[0.2, 0.3, 0.5], [0., 1., 0.], [0.25, 0.25, 0.5], [0.5, 0.5, 0.]])


def with_pixel(value):
    images = FLOATS.clone()
    images[2, 0, 1, 1] = value
    return images


BAD = {
    'double': (FLOATS.double(), LABELS, 3, 'got images as torch.float64, expected .* float32 or uint8'),
    'three axes': (FLOATS[:, 0], LABELS, 3, r'shape \(4, 3, 2\), expected \(N, C, H, W\)'),
    'no image': (FLOATS[:0], LABELS[:0], 3, 'nothing empty'),
    'nan': (with_pixel(float('nan')), LABELS, 3, 'finite'),
    'above 1': (with_pixel(1.001), LABELS, 3, r'pixels from .* to 1.001, expected finite values in \[0, 1\]'),
    'int32 labels': (FLOATS, LABELS.int(), 3, 'got labels as torch.int32'),
    'list of labels': (FLOATS, [0, 1, 2, 1], 3, 'got labels as list'),
    'one-hot labels': (FLOATS, torch.eye(4).long(), 4, r'labels of shape \(4, 4\)'),
    'label too high': (FLOATS, LABELS, 2, 'labels from 0 to 2, expected 0 to 1'),
    'label negative': (FLOATS, LABELS - 1, 3, 'labels from -1'),
    'sum of 1.01': (FLOATS, SOFT * torch.tensor([[1], [1], [1.01], [1]]), 3, r'first at image 2, sum 1.01\)'),
    'negative probability': (FLOATS, SOFT + torch.tensor([-1., 1., 0.]), 3, 'first at image 0'),
    'nan probability': (FLOATS, SOFT / torch.tensor([[1], [0], [1], [1.]]) * 0 + SOFT, 3, 'first at image 1'),
    'no classes': (FLOATS, LABELS, 0, 'num_classes=0'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_data_are_refused(case):
    images, labels, num_classes, message = BAD[case]
    with pytest.raises(ValueError, match=f'^set A: .*{message}') as caught:
        LabelledImages(images, labels, num_classes, 'set A')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('images', [FLOATS, BYTES, FLOATS.round()], ids=['float', 'uint8', 'exactly 0 and 1'])
def test_dtype_is_kept(images):
    data = LabelledImages(images, LABELS, 3, 'a')
    assert (len(data), data.image_shape) == (4, (1, 3, 2))
    taken, labels = data.take(torch.tensor([3, 0, 3]))
    assert taken.dtype == images.dtype
    assert torch.equal(taken, images[[3, 0, 3]]) and labels.tolist() == [1, 0, 1]
    assert data.images.data_ptr() == images.data_ptr()
    part = data.subset(torch.tensor([2]), name='b')
    assert (len(part), part.name, part.num_classes, part.labels.tolist()) == (1, 'b', 3, [2])


def test_unit_range_is_correctly_rounded():
    every = torch.arange(256, dtype=torch.uint8)
    exact = torch.tensor([value / 255 for value in range(256)], dtype=torch.float64).float()
    assert torch.equal(to_unit_range(every), exact)
    assert to_unit_range(FLOATS) is FLOATS
    with pytest.raises(ValueError, match='float16'):
        to_unit_range(FLOATS.half())


def test_fingerprint_is_about_content():
    data = LabelledImages(BYTES, LABELS, 3, 'a')
    strided = BYTES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert data.fingerprint() == LabelledImages(strided, LABELS, 3, 'other name').fingerprint()
    others = [
        LabelledImages(BYTES.flip(0), LABELS, 3, 'a'),
        LabelledImages(BYTES, LABELS.flip(0), 3, 'a'),
        LabelledImages(BYTES, LABELS, 4, 'a'),
        LabelledImages(BYTES.reshape(4, 1, 2, 3), LABELS, 3, 'a'),
    ]
    assert len({one.fingerprint() for one in [data, *others]}) == 5


def parts():
    return [
        LabelledImages(BYTES[:1], LABELS[:1], 3, 'a'),
        LabelledImages(BYTES[1:3], LABELS[1:3], 3, 'b'),
        LabelledImages(BYTES[3:], LABELS[3:], 3, 'c'),
    ]


@pytest.mark.parametrize('indices', [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 2, 3, 3], [1], []], ids=str)
def test_concatenation_equals_the_whole(indices):
    whole = ConcatenatedImages(parts())
    assert (len(whole), whole.name, whole.num_classes, whole.image_shape) == (4, 'a+b+c', 3, (1, 3, 2))
    images, labels = whole.take(torch.tensor(indices, dtype=torch.int64))
    assert torch.equal(images, BYTES[indices]) and images.dtype == torch.uint8
    assert torch.equal(labels, LABELS[indices])
    for index in (-1, 4):
        with pytest.raises(IndexError):
            whole.take(torch.tensor([0, index]))


REFUSED = {
    'nothing': ([], 'no parts'),
    'another shape': (LabelledImages(BYTES.reshape(4, 1, 2, 3), LABELS, 3, 'other'), r'other .* shape \(1, 2, 3\)'),
    'other classes': (LabelledImages(BYTES, LABELS, 5, 'other'), 'other has 5 classes but a has 3'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_parts_that_differ(case):
    part, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ConcatenatedImages([parts()[0], part] if part else [])


def test_concatenation_of_dtypes_gives_floats():
    mixed = ConcatenatedImages([parts()[0], LabelledImages(FLOATS, LABELS, 3, 'f')])
    assert torch.equal(mixed.take(torch.tensor([2, 0]))[0], torch.stack([FLOATS[1], BYTES[0].float() / 255]))


def test_soft_labels_are_kept():
    data = LabelledImages(BYTES, SOFT, 3, 'a')
    assert torch.equal(data.take(torch.tensor([2, 0]))[1], SOFT[[2, 0]])
    assert data.fingerprint() != LabelledImages(BYTES, SOFT.flip(0), 3, 'a').fingerprint()
    joined = ConcatenatedImages([data, LabelledImages(BYTES, LABELS, 3, 'b')])
    expected = torch.stack([torch.eye(3)[1], SOFT[2]])
    # soft also where a batch happens to hold none of the soft ones
    assert torch.equal(joined.take(torch.tensor([5, 2]))[1], expected)
    assert torch.equal(joined.take(torch.tensor([5]))[1], expected[:1])


@pytest.mark.parametrize('smoothing', [0., 0.1, 1.])
def test_smoothing_is_torchs(smoothing):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for labels in (LABELS, SOFT):
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        target = label_distribution(labels, 3, smoothing=smoothing)
        torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, target), expected)
