"""Image files in class folders: the pixels that PIL reads, the classes that the folders name, faults with the file."""

import os
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import open_archive
from timm_paf.data.errors import DataChanged
from timm_paf.data.folders import FolderImages

PIXELS = np.random.RandomState(0).randint(0, 256, (7, 5, 4, 3), dtype=np.uint8)
FILES = {'cat': ['2.png', '10.png', '1.bmp'], 'ant': ['a.png', 'B.PNG'], 'dog': ['x.png', 'y.png']}


def make(root, names=('ant', 'cat', 'dog')):
    place = 0
    for name, files in zip(names, (FILES['ant'], FILES['cat'], FILES['dog']), strict=True):
        (root / name).mkdir(parents=True)
        for file in files:
            Image.fromarray(PIXELS[place]).save(root / name / file)
            place += 1
    return root


def test_pixels_and_labels(tmp_path):
    make(tmp_path / 'set')
    (tmp_path / 'set' / 'cat' / 'notes.txt').write_text('no image')
    (tmp_path / 'set' / 'cat' / '.hidden.png').write_text('no image')
    (tmp_path / 'set' / '.thumbnails').mkdir()
    source = open_archive(tmp_path / 'set', num_classes=3)
    assert isinstance(source, FolderImages) and source.name == 'set'
    assert len(source) == 7 and source.image_shape == (3, 5, 4)
    order = torch.tensor([6, 0, 3, 3, 2])
    images, labels = source.take(order)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    names = [source.path(index).name for index in range(7)]
    assert names == ['a.png', 'B.PNG', '1.bmp', '2.png', '10.png', 'x.png', 'y.png']
    stored = PIXELS[[0, 1, 4, 2, 3, 5, 6]].transpose(0, 3, 1, 2)  # cat's files were written as 2, 10, 1
    assert np.array_equal(images, stored[order]) and labels.tolist() == [2, 0, 1, 1, 1]
    assert source.report.class_counts == (2, 3, 2)
    assert source.take(torch.tensor([], dtype=torch.int64))[0].shape == (0, 3, 5, 4)
    assert torch.equal(source.class_numbers(), source.take(torch.arange(7))[1])
    twin = pickle.loads(pickle.dumps(source))
    assert torch.equal(twin.take(torch.tensor([5]))[0], source.take(torch.tensor([5]))[0])
    for index in (-1, 7):
        with pytest.raises(IndexError, match=r'out of range; there are 7 images'):
            source.take(torch.tensor([index]))


@pytest.mark.parametrize('names, labels', [
    (('0', '1', '2'), [0, 0, 1, 1, 1, 2, 2]),
    (('2', '9', '10'), [2, 2, 9, 9, 9, 10, 10]),
    (('02', '03', '11'), [2, 2, 3, 3, 3, 11, 11]),
], ids=['all', 'some, in order of numbers', 'leading zeros'])
def test_folders_that_are_numbers_name_the_class(tmp_path, names, labels):
    source = open_archive(make(tmp_path, names), num_classes=max(labels) + 1)
    assert source.take(torch.arange(7))[1].tolist() == labels


@pytest.mark.parametrize('mode, channels, expected', [
    ('L', None, 1), ('L', 3, 3), ('1', None, 1), ('P', None, 3), ('RGBA', None, 3), ('LA', 1, 1)])
def test_modes(tmp_path, mode, channels, expected):
    (tmp_path / '0').mkdir()
    image = Image.fromarray(PIXELS[0]).convert(mode)
    image.save(tmp_path / '0' / 'a.png')
    source = FolderImages(tmp_path, channels=channels)
    assert source.image_shape == (expected, 5, 4)
    wanted = np.asarray(image.convert('RGB' if expected == 3 else 'L')).reshape(5, 4, expected)
    assert np.array_equal(source.take(torch.tensor([0]))[0][0].permute(1, 2, 0), wanted)


def write(path, pixels):
    Image.fromarray(pixels).save(path)


def move_older(path):
    """Replace a file by one with a modification time of 1970."""
    other = path.with_name('.other.png')
    write(other, PIXELS[0])
    os.utime(other, (0, 0))
    other.replace(path)


BAD = {
    'another size': (lambda r: write(r / 'cat' / '2.png', PIXELS[0][:4]), {}, r'2\.png: is 4x4 pixels, but a\.png is'),
    'no image': (lambda r: (r / 'dog' / 'x.png').write_text('x'), {}, r'x\.png: cannot be decoded \(not an image\)'),
    'colour for gray': (lambda r: None, {'channels': 1}, r'a\.png: is of mode RGB, expected 8-bit gray'),
    '16 bits': (
        lambda r: write(r / 'cat' / '1.png', PIXELS[0, ..., 0].astype(np.uint16)), {}, r'1\.png: is of mode I;16, exp'),
    'a class too many': (lambda r: (r / 'eel').mkdir(), {}, 'has 4 classes, but the training images have 3'),
    'other channels': (lambda r: None, {'channels': 4}, 'got channels=4'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_folders(tmp_path, case):
    damage, options, message = BAD[case]
    damage(make(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        open_archive(tmp_path, num_classes=3, **options)
    assert case == 'a class too many' or (str(tmp_path) in str(caught.value) and '\n' not in str(caught.value))


@pytest.mark.parametrize('fill, message', [
    (lambda r: None, 'holds no images'),
    (lambda r: [(r / name).mkdir() for name in 'abc'], 'holds no images'),
    (lambda r: make(r, '023'), 'do not have its class 3, but 0, 1, 2'),
], ids=['nothing', 'empty classes', 'number too high'])
def test_folders_that_are_no_classes(tmp_path, fill, message):
    fill(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_archive(tmp_path, num_classes=3)


CHANGES = {
    'removed': (lambda path: path.unlink(), r'2\.png: cannot be decoded \(No such file'),
    'an older file in its place': (move_older, r'2\.png: changed since its folder was'),
    'overwritten': (lambda path: path.write_text('x'), r'2\.png: changed since its folder'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_stops_the_run(tmp_path, change):
    source = FolderImages(make(tmp_path))
    make_change, message = CHANGES[change]
    time.sleep(0.02)  # file systems stamp by a clock that ticks every few milliseconds
    make_change(tmp_path / 'cat' / '2.png')
    source.take(torch.tensor([0, 2, 4]))
    with pytest.raises(DataChanged, match=message):
        source.take(torch.tensor([0, 3]))


def test_a_file_that_cannot_be_decoded_stops_the_run(tmp_path):
    path = make(tmp_path) / 'cat' / '2.png'
    whole = path.read_bytes()
    path.write_bytes(whole[:45])  # its header is right, which is all that is read on opening
    source = FolderImages(tmp_path)
    with pytest.raises(DataChanged, match=r'2\.png: cannot be decoded'):
        source.take(torch.tensor([3]))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'):
        FolderImages(tmp_path / 'nothing')
