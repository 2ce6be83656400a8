"""Image files: their pixels are the same in every way in, folders name the classes, faults name the file."""

import os
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import (
    DataChanged,
    DatasetOptions,
    Decoding,
    LabelledImages,
    MixedBatches,
    all_labels,
    open_archive,
    open_dataset,
    place_on_device,
    source_notes,
)
from timm_paf.data.decoded import folder_images
from timm_paf.data.folders import ImageFolder

PIXELS = np.random.RandomState(0).randint(0, 256, (12, 5, 4, 3), dtype=np.uint8)
RGB, GRAY = PIXELS[0], PIXELS[1, ..., 0]
DEEP = np.linspace(0, 65535, 20).reshape(5, 4).astype(np.uint16)
HALF = np.full((5, 4), 128, np.uint8)
ALPHA = np.dstack([RGB, HALF])


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)).save(path, **options)


def palette(transparent):
    image = Image.new('P', (4, 5))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([i % 2 for i in range(20)])
    if transparent:
        image.info['transparency'] = 1
    return image


def checkers(first, second):
    return np.array([first, second] * 10, np.uint8).reshape(5, 4, 3)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn it by 90 degrees clockwise
    return exif


INK = np.random.RandomState(1).randint(0, 256, (5, 4, 4), dtype=np.uint8)
# file ending, image and how it is saved, channels, pixels to be seen (H, W, C), greatest difference
SEEN = {
    'RGB': ('png', RGB, {}, 3, RGB, 0),
    'gray': ('png', GRAY, {}, 1, GRAY[..., None], 0),
    'gray as RGB': ('bmp', GRAY, {}, 3, np.dstack([GRAY] * 3), 0),
    'RGB as gray': ('png', RGB, {}, 1, (RGB @ [0.299, 0.587, 0.114])[..., None], 1),
    'black and white': ('png', Image.fromarray(GRAY).point(lambda v: 255 * (v > 99), '1'), {}, 1,
                        (255 * (GRAY > 99))[..., None], 0),
    '16 bits': ('png', DEEP, {}, 1, np.rint(DEEP / 257)[..., None], 0),
    '16 bits as PGM': ('pgm', DEEP, {}, 1, np.rint(DEEP / 257)[..., None], 0),
    '16 bits as RGB': ('tif', DEEP, {}, 3, np.dstack([np.rint(DEEP / 257)] * 3), 0),
    'palette': ('png', palette(False), {}, 3, checkers((10, 20, 30), (200, 100, 50)), 0),
    'palette with a transparent colour': ('png', palette(True), {'transparency': 1}, 3,
                                          checkers((10, 20, 30), (255, 255, 255)), 0),
    'half transparent': ('png', ALPHA, {}, 3, 255 + (RGB.astype(float) - 255) * 128 / 255, 1),
    'half transparent gray': ('png', Image.merge('LA', [Image.fromarray(GRAY), Image.fromarray(HALF)]), {}, 1,
                              (255 + (GRAY.astype(float) - 255) * 128 / 255)[..., None], 1),
    'CMYK': ('tif', Image.fromarray(INK, 'CMYK'), {}, 3,
             (255 - INK[..., :3].astype(float)) * (255 - INK[..., 3:]) / 255, 1),
    'turned by EXIF': ('png', np.ascontiguousarray(np.rot90(RGB)), {'exif': turned()}, 3, RGB, 0),
    'two pages': ('tif', RGB, {'save_all': True, 'append_images': [Image.fromarray(RGB)]}, 3, 'an animation or', 0),
    'an animation': ('png', RGB, {'save_all': True, 'append_images': [Image.fromarray(PIXELS[1])]}, 3, 'animation', 0),
    'float': ('tif', DEEP.astype(np.float32), {}, 1, 'mode F', 0),
    '32 bits': ('tif', DEEP.astype(np.int32), {}, 1, 'mode I', 0),
    'no image': ('png', None, {}, 3, 'not an image', 0),
    'cut short': ('png', RGB, {'cut': 60}, 3, 'truncated', 0),
}


def as_archive(root, decoding):
    return open_archive(root / 'val', channels=decoding.channels)


def as_test_data(root, decoding):
    return open_dataset(str(root / 'train'), DatasetOptions(
        test_data=[root / 'val'], val_size=2, decoding=decoding)).test


def by_name(name):
    return lambda root, decoding: open_dataset(name, DatasetOptions(
        data_dir=root, val_size=2, decoding=decoding)).test


def in_training(root, decoding):
    source = folder_images(root / 'val', decoding=decoding).opened()
    everything = torch.arange(len(source))
    ((images, labels),) = source.prefetch(lambda _: everything, 1, key=())
    return LabelledImages(images, labels, 2, 'batch')


WAYS = {
    'archive': as_archive, '--test-data': as_test_data, '--dataset folder': by_name('folder'),
    "torchvision's name": by_name('torch/image_folder'), 'training': in_training}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('case', SEEN)
def test_every_way_in_sees_the_same_pixels(tmp_path, case, way):
    ending, image, options, channels, expected, most = SEEN[case]
    cut = (options := dict(options)).pop('cut', None)
    for place in ('train/a', 'train/b', 'val/b'):
        for number in range(3):
            save(tmp_path / place / f'{number}.png', RGB if channels == 3 else GRAY)
    path = tmp_path / 'val' / 'a' / f'x.{ending}'
    path.parent.mkdir()
    if image is None:
        path.write_text('no image')
    else:
        save(path, image, **options)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])

    def seen():
        source = WAYS[way](tmp_path, Decoding(channels=channels, workers=0))
        images, labels = source.take(torch.arange(len(source)))
        assert source.image_shape == (channels, 5, 4) and images.dtype == torch.uint8
        return images[labels == 0][0].permute(1, 2, 0).numpy()

    if isinstance(expected, str):
        with pytest.raises((ValueError, DataChanged), match=rf'x\.{ending}: .*{expected}') as caught:
            seen()
        assert '\n' not in str(caught.value)
    else:
        assert np.abs(seen().astype(float) - expected).max() <= most


FILES = {'cat': ['2.png', '10.png', '1.bmp'], 'ant': ['a.png', 'B.PNG'], 'dog': ['x.png', 'y.png']}


def make(root, names=('ant', 'cat', 'dog'), inner=''):
    place = 0
    for name, files in zip(names, (FILES['ant'], FILES['cat'], FILES['dog']), strict=True):
        for file in files:
            save(root / name / inner / file, PIXELS[place])
            place += 1
    return root


JUNK = {
    'hidden': ('cat/._2.png', 'cat/.DS_Store', '.ipynb_checkpoints/2-checkpoint.png', '__MACOSX/cat/2.png',
               '.AppleDouble/2.png', 'cat/.AppleDouble/2.png', 'dog/Thumbs.db', '@eaDir/2.png'),
    'not in a class folder': ('stray.png',),
    'without the ending of an image': ('cat/notes.txt', 'dog/x.xml'),
}


@pytest.mark.parametrize('inner', ['', 'images', 'images/part'], ids=['flat', 'one level deeper', 'two levels deeper'])
def test_pixels_and_labels(tmp_path, inner):
    make(tmp_path / 'set', inner=inner)
    for file in sum(JUNK.values(), ()):
        (tmp_path / 'set' / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set' / file).write_text('no image')
    source = open_archive(tmp_path / 'set', num_classes=3)
    assert source.name == 'set' and len(source) == 7 and source.image_shape == (3, 5, 4)
    assert source.class_names == ('ant', 'cat', 'dog')
    order = torch.tensor([6, 0, 3, 3, 2])
    images, labels = source.take(order)
    assert labels.dtype == torch.int64
    names = [os.path.basename(source.dataset.filename(index)) for index in range(7)]
    assert names == ['a.png', 'B.PNG', '1.bmp', '2.png', '10.png', 'x.png', 'y.png']
    stored = PIXELS[[0, 1, 4, 2, 3, 5, 6]].transpose(0, 3, 1, 2)  # cat's files were written as 2, 10, 1
    assert np.array_equal(images, stored[order]) and labels.tolist() == [2, 0, 1, 1, 1]
    assert source.report.class_counts == (2, 3, 2) and all_labels(source).tolist() == [0, 0, 1, 1, 1, 2, 2]
    (note,) = source_notes(source)
    for reason, files in JUNK.items():
        assert f'{len(files)} {reason}' in note
    twin = pickle.loads(pickle.dumps(source))
    assert torch.equal(twin.take(torch.tensor([5]))[0], source.take(torch.tensor([5]))[0])
    for index in (-1, 7):
        with pytest.raises(IndexError, match=r'out of range; there are 7 images'):
            source.take(torch.tensor([index]))


@pytest.mark.parametrize('names, count, labels', [
    (('0', '1', '2'), 3, [0, 0, 1, 1, 1, 2, 2]),
    (('2', '9', '10'), None, [0, 0, 1, 1, 1, 2, 2]),
    (('2', '9', '10'), 12, [2, 2, 9, 9, 9, 10, 10]),
    (('02', '03', '11'), 12, [2, 2, 3, 3, 3, 11, 11]),
], ids=['all', 'some, in order of numbers', 'some of twelve', 'leading zeros'])
def test_numbers_as_names(tmp_path, names, count, labels):
    assert all_labels(open_archive(make(tmp_path, names), num_classes=count)).tolist() == labels


def test_order_of_names_is_timms(tmp_path):
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    for number, name in enumerate(['n10', 'n2', 'N1', 'x', '10', '9', 'Y z', 'a_1']):
        save(tmp_path / name / '0.png', PIXELS[number])
    theirs = ReaderImageFolder(str(tmp_path)).class_to_idx
    assert ImageFolder(tmp_path).class_names == tuple(sorted(theirs, key=theirs.__getitem__))


def tiny_imagenet(root):
    """Two classes as the zip of Tiny-ImageNet unpacks."""
    for number, name in enumerate(('n02', 'n01')):
        for index in range(4):
            save(root / 'train' / name / 'images' / f'{name}_{index}.JPEG', PIXELS[number])
        (root / 'train' / name / f'{name}_boxes.txt').write_text('n02_0.JPEG\t0\t0\t62\t62\n')
        save(root / 'val' / 'images' / f'val_{number}.JPEG', PIXELS[number])
    (root / 'val' / 'val_annotations.txt').write_text(
        'val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t62\t62\n')
    return root


def test_tiny_imagenet(tmp_path):
    options = DatasetOptions(data_dir=tiny_imagenet(tmp_path), val_size=2, decoding=Decoding(workers=0))
    train, _, test = open_dataset('folder', options)
    assert train.class_names == test.class_names == ('n01', 'n02')
    for images, labels in (train.take(torch.arange(6)), test.take(torch.arange(2))):
        for image, label in zip(images.int().numpy(), labels.tolist(), strict=True):
            # JPEG is inexact; the other class is far away
            distances = [np.abs(image - PIXELS[number].transpose(2, 0, 1)).mean() for number in (1, 0)]
            assert int(np.argmin(distances)) == label


def test_annotations_that_do_not_fit_the_files(tmp_path):
    (tiny_imagenet(tmp_path) / 'val' / 'images' / 'val_1.JPEG').unlink()
    with pytest.raises(FileNotFoundError, match=r'val_1\.JPEG is missing, but val_annotations\.txt'):
        open_archive(tmp_path / 'val')


def levels(root):
    for name in ('animals/cat', 'animals/dog', 'plants/oak'):
        save(root / name / '0.png', RGB)


BAD = {
    'nothing': (lambda r: r.mkdir(), {}, 'holds no images'),
    'empty classes': (lambda r: [(r / name).mkdir(parents=True) for name in 'abc'], {}, 'holds no images'),
    'no folder': (lambda r: None, {}, 'no such'),
    'number too high': (lambda r: make(r, '023'), {'num_classes': 3}, 'do not have its class 3, but 0, 1, 2'),
    'a class too many': (make, {'num_classes': 2}, 'has 3 classes, but the training images have 2'),
    'classes at two levels': (levels, {}, 'the folders animals, plants or those inside them, cat, dog, oak'),
    'another size': (lambda r: save(make(r) / 'cat' / '2.png', RGB[:4]), {}, r'2\.png: it is 4x4 pixels, but .* 5x4'),
    'other channels': (make, {'channels': 4}, 'channels=4'),
}


@pytest.mark.parametrize('case', BAD)
def test_folders_that_are_refused(tmp_path, case):
    fill, options, message = BAD[case]
    fill(tmp_path / 'set')
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_archive(tmp_path / 'set', **options)
    assert '\n' not in str(caught.value)


def touch(path):
    os.utime(path, (1, 1))


def replace_by(pixels, path):
    """Another file in its place, with the old time of modification."""
    known = path.stat()
    save(path.with_name('.other.png'), pixels)
    os.utime(path.with_name('.other.png'), ns=(known.st_atime_ns, known.st_mtime_ns))
    path.with_name('.other.png').replace(path)


def overwrite(path):
    save(path, PIXELS[9])
    touch(path)


# change -> what the error says; None if it is no change
CHANGES = {
    'removed': (lambda path: path.unlink(), r'2\.png: the image cannot be read \(No such file'),
    'overwritten': (overwrite, r'2\.png: changed since its folder'),
    'another size': (lambda path: path.write_text('x'), r'2\.png: changed since its folder'),
    'a hard link': (lambda path: os.link(path, path.with_name('link')), None),
    'another mode': (lambda path: path.chmod(0o600), None),
    'the same file again': (lambda path: replace_by(PIXELS[2], path), None),
    'another time': (touch, r'2\.png: changed since its folder'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_stops_the_run(tmp_path, change):
    source = open_archive(make(tmp_path))
    make_change, message = CHANGES[change]
    before = source.take(torch.arange(7))[0]
    time.sleep(0.02)  # file systems stamp by a clock that ticks every few milliseconds
    make_change(tmp_path / 'cat' / '2.png')
    source.take(torch.tensor([0, 2, 4]))
    if message is None:
        assert torch.equal(source.take(torch.arange(7))[0], before)
    else:
        with pytest.raises(DataChanged, match=message):
            source.take(torch.tensor([0, 3]))


def sized(root, sizes):
    """A folder with two classes; images of these sizes (height, width) in each, of one colour."""
    for number, size in enumerate(sizes):
        for label in range(2):
            save(root / f'class{label}' / f'{number}.png', np.full((*size, 3), 100 * label + number, np.uint8))


ONE, MIXED = [(8, 8)] * 6, [(8, 8), (16, 12), (10, 10), (8, 8), (9, 12), (8, 8)]
# training images, test images, settings -> shape of the images, whether test images are as they are; or the error
SIZES = {
    'one size': (ONE, ONE, {}, (3, 8, 8), True),
    'one size, not square': ([(8, 6)] * 6, [(8, 6)] * 3, {}, (3, 8, 6), True),
    'different sizes': (MIXED, MIXED, {}, (3, 224, 224), False),
    'a size that is theirs': (ONE, ONE, {'size': 8}, (3, 8, 8), True),
    'another size': (ONE, ONE, {'size': 12}, (3, 12, 12), False),
    'a share of the image': (ONE, ONE, {'crop_pct': 0.5}, (3, 8, 8), False),
    'test images of another size': (ONE, [(9, 8)] * 3, {}, r'0\.png: it is 9x8 pixels, but others are 8x8', None),
    'one test image of another size': (ONE, [(8, 8), (8, 7)], {}, r'1\.png: it is 8x7 pixels, but', None),
    'resized to one size': (ONE, [(9, 8)] * 3, {'size': 8}, (3, 8, 8), False),
}


@pytest.mark.parametrize('val_split', [None, 'val'])
@pytest.mark.parametrize('case', SIZES)
def test_images_of_one_size_keep_it(tmp_path, case, val_split):
    train_sizes, test_sizes, settings, expected, kept = SIZES[case]
    sized(tmp_path / 'train', train_sizes)
    sized(tmp_path / 'val', test_sizes)
    options = DatasetOptions(
        data_dir=tmp_path, val_size=2, val_split=val_split, decoding=Decoding(workers=0, **settings))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            open_dataset('folder', options)
        return
    resizing = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, 'resize', lambda self, *a, old=Image.Image.resize, **k: (
            resizing.append(1), old(self, *a, **k))[1])
        splits = open_dataset('folder', options)
    assert all(split.image_shape == expected for split in splits) and bool(resizing) != kept
    batch = next(MixedBatches(splits.train, batch_size=4, synthetic_fraction=0., seed=0).epoch(0))
    assert batch.x.shape[1:] == expected
    # images that stay as they are can be kept on the device
    if settings == {} and kept:
        (placed,) = place_on_device([splits.train], torch.device('cpu'), budget=10**9, required=True)
        assert torch.equal(placed.images, splits.train.take(torch.arange(len(splits.train)))[0])


def test_crop_of_the_test_images_is_the_one_asked_for(tmp_path):
    """A ramp shows which part of the image is seen."""
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    for place in ('train/a', 'train/b', 'val/a', 'val/b'):
        for number in range(3):
            save(tmp_path / place / f'{number}.png', ramp)
    for crop_pct in (None, 1., 0.5, 0.25):
        for val_split in (None, 'val'):
            splits = open_dataset('folder', DatasetOptions(
                data_dir=tmp_path, val_size=2, val_split=val_split,
                decoding=Decoding(channels=1, workers=0, size=16, crop_pct=crop_pct)))
            for split in (splits.val, splits.test):
                seen = split.take(torch.arange(2))[0][0, 0, 0].tolist()
                width = 64 * (crop_pct or 0.875)
                assert seen[0] == pytest.approx(4 * (32 - width / 2 + width / 32), abs=6)
                assert seen[-1] == pytest.approx(4 * (32 + width / 2 - width / 32), abs=6)
