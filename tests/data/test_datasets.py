"""Data sets by name, each made in its real format."""

import copyreg
import gc
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from timm_paf.data import (
    ConcatenatedImages,
    DatasetOptions,
    Decoding,
    ImagesWithout,
    LabelledImages,
    all_labels,
    open_dataset,
)

DECODING = Decoding(size=8, workers=0, crop_pct=1.)


def pixels(count, seed, size=32):
    return np.random.RandomState(seed).randint(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """The five batches, test batch and names of CIFAR-10 with 20 images each; what is in them."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, '_check_integrity', lambda self: True)
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *_: True)
    root = tmp_path / 'cifar-10-batches-py'
    root.mkdir()
    content = {}
    for number, name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        images, labels = pixels(20, number), [i % 10 for i in range(20)]
        rows = images.transpose(0, 3, 1, 2).reshape(20, -1)
        (root / name).write_bytes(pickle.dumps({'data': rows, 'labels': labels}))
        content[name] = images, labels
    (root / 'batches.meta').write_bytes(pickle.dumps({'label_names': [f'class {i}' for i in range(10)]}))
    return tmp_path, content


def as_rows(data):
    images, labels = data.take(torch.arange(len(data)))
    return sorted(zip(map(tuple, images.flatten(1).tolist()), labels.tolist(), strict=True))


def test_cifar10(cifar10):
    root, content = cifar10
    train, val, test = open_dataset('torch/cifar10', DatasetOptions(data_dir=root, val_size=20))
    images, labels = content['test_batch']
    assert torch.equal(test.images, torch.from_numpy(images).permute(0, 3, 1, 2)) and test.labels.tolist() == labels
    assert test.images.dtype == torch.uint8 and train.num_classes == 10 and train.image_shape == (3, 32, 32)
    assert (len(train), len(val)) == (80, 20) and val.labels.bincount().tolist() == [2] * 10
    # together they are the training images, each once
    every = np.concatenate([content[f'data_batch_{i}'][0] for i in range(1, 6)]).transpose(0, 3, 1, 2).reshape(100, -1)
    assert sorted(as_rows(train) + as_rows(val)) == sorted(
        zip(map(tuple, every.tolist()), [i % 10 for i in range(20)] * 5, strict=True))
    again, other = (open_dataset(
        'torch/cifar10', DatasetOptions(data_dir=root, val_size=20, split_seed=seed)).val for seed in (0, 1))
    assert again.fingerprint() == val.fingerprint() != other.fingerprint()


@pytest.fixture
def folder(tmp_path):
    for split, count in (('train', 12), ('val', 5)):
        for label in range(3):
            (tmp_path / split / f'class{label}').mkdir(parents=True)
            for number in range(count):
                shade = label * 60 + number + (30 if split == 'val' else 0)
                path = tmp_path / split / f'class{label}' / f'{number}.png'
                Image.new('RGB', (9 + number, 8), (shade,) * 3).save(path)
    return tmp_path


def test_folder(folder):
    # 'val' is what timm finds for 'validation'
    train, val, test = open_dataset('folder', DatasetOptions(data_dir=folder, val_size=6, decoding=DECODING))
    assert (len(train), len(val), len(test), train.num_classes) == (30, 6, 15, 3)
    assert val.labels.bincount().tolist() == [2, 2, 2]
    shades = sorted(train.take(torch.arange(30))[0][:, 0, 0, 0].tolist() + val.images[:, 0, 0, 0].tolist())
    assert shades == [label * 60 + number for label in range(3) for number in range(12)]
    assert sorted(test.images[:, 0, 0, 0].tolist()) == [label * 60 + 30 + n for label in range(3) for n in range(5)]
    # the first few test images are not all of one class
    assert len(test.labels[:5].unique()) > 1
    grey = DatasetOptions(data_dir=folder, val_size=6, decoding=Decoding(size=8, workers=0, channels=1))
    assert open_dataset('folder', grey).train.image_shape == (1, 8, 8)
    # a validation split leaves all training images
    named = DatasetOptions(data_dir=folder, val_split='val', test_split='val', decoding=DECODING)
    assert [len(part) for part in open_dataset('folder', named)] == [36, 15, 15]


def test_one_folder_for_training_and_test(folder):
    with pytest.raises(ValueError, match='named for training and for test'):
        open_dataset('folder', DatasetOptions(data_dir=folder, val_size=6, test_split='training', decoding=DECODING))


def test_folders_as_archives_and_labels_by_name(folder, tmp_path):
    (folder / 'val' / 'class0').rename(tmp_path / 'class0')
    options = DatasetOptions(test_data=[folder / 'val'], val_size=6, decoding=DECODING)
    splits = open_dataset(str(folder / 'train'), options)
    assert splits.train.class_names == ('class0', 'class1', 'class2')
    assert splits.test.labels.bincount().tolist() == [0, 5, 5]
    np.save(tmp_path / 'x.npy', pixels(10, 3, 8))
    np.save(tmp_path / 'numbers.npy', np.arange(10) % 3)
    with pytest.raises(FileNotFoundError, match=r'x\.npy: no file with labels'):
        open_dataset(str(folder / 'train'), replace(options, test_data=[tmp_path / 'x.npy']))
    splits = open_dataset(str(folder / 'train'), replace(
        options, test_data=[tmp_path / 'x.npy'], test_labels=tmp_path / 'numbers.npy'))
    assert splits.test.labels.bincount().tolist() == [4, 3, 3]
    np.save(tmp_path / 'x.npy', pixels(10, 3, 9))
    with pytest.raises(ValueError, match=r'x\.npy holds images of shape \(3, 9, 9\)'):
        open_dataset(str(folder / 'train'), replace(
            options, test_data=[tmp_path / 'x.npy'], test_labels=tmp_path / 'numbers.npy'))


def test_archive(tmp_path):
    for name, count, seed in (('train', 100, 0), ('test', 40, 1)):
        np.savez(tmp_path / name, image=pixels(count, seed, 8), label=np.arange(count) * 5 // count)
    options = DatasetOptions(num_classes=5, test_data=[tmp_path / 'test.npz'], val_size=10)
    train, val, test = open_dataset(str(tmp_path / 'train.npz'), options)
    assert (len(train), len(val), len(test)) == (90, 10, 40) and val.labels.bincount().tolist() == [2] * 5
    held = LabelledImages(torch.from_numpy(pixels(100, 0, 8)).permute(0, 3, 1, 2), torch.arange(100) // 20, 5, 'all')
    assert sorted(as_rows(train) + as_rows(val)) == as_rows(held)
    assert len(test.labels[:8].unique()) > 2  # the archive is sorted by class


@pytest.mark.parametrize('left_out', [[0], [9], [0, 1, 2], [3, 4, 9, 0], [8, 1, 6], []], ids=str)
def test_images_without_some(left_out):
    source = LabelledImages(torch.arange(10).float().reshape(10, 1, 1, 1) / 10, torch.arange(10), 10, 'ten')
    left = ImagesWithout(source, torch.tensor(left_out, dtype=torch.int64), name='left')
    expected = [index for index in range(10) if index not in left_out]
    assert len(left) == len(expected) and all_labels(left).tolist() == expected
    assert left.take(torch.arange(len(left)))[1].tolist() == expected
    assert left.take(torch.arange(len(left)).flip(0))[1].tolist() == expected[::-1]


def test_labels_of_any_source():
    hard = LabelledImages(torch.zeros(5000, 1, 1, 1, dtype=torch.uint8), torch.arange(5000) % 7, 7, 'hard')
    soft = LabelledImages(torch.zeros(3, 1, 1, 1), torch.eye(7)[[6, 0, 2]], 7, 'soft')
    whole = ConcatenatedImages([ImagesWithout(hard, torch.tensor([0]), name='left'), soft])
    assert all_labels(whole).tolist() == [i % 7 for i in range(1, 5000)] + [6, 0, 2]


def missing(**settings):
    return lambda path: DatasetOptions(data_dir=path, decoding=DECODING, **settings)


def photos(root):
    """An archive of image files."""
    with tarfile.open(root / 'photos.tar', 'w') as archive:
        for name in ('a/1.png', 'a/2.png', 'b/1.png', 'b/2.png'):
            (root / name).parent.mkdir(exist_ok=True)
            Image.new('RGB', (8, 8)).save(root / name)
            archive.add(root / name, name)
    return root / 'photos.tar'


BAD = {
    'unknown': ('imagenet', missing(), ValueError, 'no such data set; expected digits, torch/cifar10'),
    'no folder given': ('torch/cifar10', lambda _: DatasetOptions(), ValueError, 'torch/cifar10: give data_dir'),
    'folder empty': (
        'folder', lambda root: DatasetOptions(data_dir=root), FileNotFoundError, "no folder 'train' in it"),
    'folder missing': (
        'folder', lambda root: DatasetOptions(data_dir=root / 'x'), FileNotFoundError, 'there is no such folder'),
    'archive of image files': (
        'folder', lambda root: DatasetOptions(data_dir=photos(root)), FileNotFoundError, 'or unpack the file'),
    'folder as archive': (
        str(Path(__file__).parent), lambda _: DatasetOptions(), ValueError, "the data set is 'folder'"),
    'unknown to torchvision': ('torch/cifar11', missing(), FileNotFoundError, 'Unknown torchvision dataset cifar11'),
    'archive not there': ('nowhere.npz', missing(num_classes=9, test_data=['x.npz']), FileNotFoundError, 'nowhere.npz'),
    'archive without test': ('nowhere.npz', missing(num_classes=10), ValueError, 'give test_data'),
    'stream without validation': ('wds/name', missing(num_classes=10), ValueError, 'give val_split'),
    'stream without classes': ('wds/name', missing(val_split='val'), ValueError, 'num_classes'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_opened_is_an_error_of_one_line(case, tmp_path):
    name, options, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        open_dataset(name, options(tmp_path))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('damage, val_size, error, message', [
    (lambda root: (root / 'train' / 'class3').mkdir(), 6, ValueError, 'the folder class3 in .* holds no images'),
    (lambda root: [(root / 'train' / f'class{n}').rename(root / f'old{n}') for n in (1, 2)], 6, ValueError,
     r'all 12 images are of one class, class0 \(number 0\)'),
    (lambda root: (root / 'val' / 'class1').rename(root / 'val' / 'Class 1'), 6, ValueError,
     'do not have its class Class 1, but class0, class1, class2'),
    (lambda root: (root / 'train').rename(root / 'training images'), 6, FileNotFoundError,
     "no folder 'train' in it, but training images, val"),
    (lambda root: None, 36, ValueError, 'val_size = 36: expected 1 to 35'),
    (lambda root: (root / 'val' / 'class1' / '2.png').write_bytes(b'text'), 6, ValueError, r'2\.png: the image cannot'),
    (lambda root: (root / 'val').rename(root / 'holdout'), 6, FileNotFoundError, "no folder 'validation' in it"),
], ids=['empty class', 'one class', 'foreign class', 'training split missing', 'no training images left',
        'broken test image', 'split missing'])
def test_folders_that_cannot_be_opened(folder, damage, val_size, error, message):
    damage(folder)
    with pytest.raises(error, match=message):
        open_dataset('folder', DatasetOptions(data_dir=folder, val_size=val_size, decoding=DECODING))


@pytest.fixture
def hub(tmp_path):
    """Sixty digits as parquet files of two splits, as the hub has them; image and label in these columns."""
    pyarrow = pytest.importorskip('pyarrow')
    # datasets 5.2 with pyarrow 26: values of this class cannot be pickled
    copyreg.pickle(pyarrow.lib.MonthDayNano, lambda value: (tuple, (tuple(value),)))
    pytest.importorskip('datasets')
    from pyarrow import parquet

    def write(image, label):
        raw, content = load_digits(), []
        for pixels in raw.images[:60]:
            Image.fromarray((pixels * 15).astype(np.uint8)).save(buffer := io.BytesIO(), 'PNG')
            content.append({'bytes': buffer.getvalue(), 'path': None})
        names = {label: [f'digit {n}' for n in range(10)], 'coarse': ['even', 'odd']}
        features = {image: {'_type': 'Image'}} | {
            column: {'names': classes, '_type': 'ClassLabel'} for column, classes in names.items()}
        table = pyarrow.table({
            image: pyarrow.array(content, pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])),
            label: raw.target[:60].tolist(), 'coarse': (raw.target[:60] % 2).tolist()})
        (tmp_path / 'digits').mkdir()
        for split in ('train', 'validation'):
            parquet.write_table(
                table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})}),
                tmp_path / 'digits' / f'{split}.parquet')
        return f'hfds/{tmp_path / "digits"}', dict(
            data_dir=tmp_path / 'cache', val_size=10, decoding=Decoding(workers=0, channels=1))
    return write


@pytest.mark.filterwarnings('ignore')  # of that package, about itself
@pytest.mark.parametrize('image, label, keys', [
    ('image', 'label', {}), ('img', 'fine_label', {'input_key': 'img', 'target_key': 'fine_label'})], ids=str)
def test_hugging_face_data_set(hub, image, label, keys):
    name, settings = hub(image, label)
    train, val, test = open_dataset(name, DatasetOptions(**settings, **keys))
    assert (len(train), len(val), len(test)) == (50, 10, 60) and train.image_shape == (1, 8, 8)
    assert train.class_names == test.class_names == tuple(f'digit {n}' for n in range(10))
    raw = load_digits()
    assert as_rows(test) == sorted(
        (tuple((image * 15).astype(int).flatten().tolist()), label)
        for image, label in zip(raw.images[:60], raw.target[:60].tolist(), strict=True))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('keys, flag', [
    ({}, 'input_key'), ({'input_key': 'img'}, 'target_key'), ({'input_key': 'img', 'target_key': 'x'}, 'target_key')],
    ids=str)
def test_columns_that_are_not_there(hub, keys, flag):
    name, settings = hub('img', 'fine_label')
    message = f'no column .*, but img, fine_label, coarse; choose one with {flag}'
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(name, DatasetOptions(**settings, **keys))
    assert '\n' not in str(caught.value)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('processes', [1, 2])
def test_web_dataset_sees_what_files_hold(tmp_path, monkeypatch, processes):
    """The last of several processes also sees all images of evaluation, which it shares out by itself."""
    pytest.importorskip('webdataset')
    monkeypatch.setattr('timm.data.readers.reader_wds.dist', SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: processes,
        get_rank=lambda: processes - 1))
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for split, count in (('train', 32), ('val', 6), ('test', 4)):
        with tarfile.open(tmp_path / f'{split}-000.tar', 'w') as shard:
            for number in range(count):
                Image.fromarray(deep).save(buffer := io.BytesIO(), 'PNG')
                for ending, content in ('png', buffer.getvalue()), ('cls', str(number % 2).encode()):
                    member = tarfile.TarInfo(f'{number:04}.{ending}')
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    (tmp_path / '_info.json').write_text(json.dumps({'splits': {
        split: {'name': split, 'filenames': [f'{split}-000.tar'], 'shard_lengths': [count], 'num_samples': count}
        for split, count in (('train', 32), ('val', 6), ('test', 4))}}))
    options = DatasetOptions(
        data_dir=tmp_path, num_classes=2, val_split='val', test_split='test', decoding=Decoding(channels=1, workers=0))
    train, val, test = open_dataset('wds/digits', options)
    seen = [val.take(torch.arange(6))[0], test.take(torch.arange(4))[0]]
    assert (len(val), len(test), train.dataset.reader.dist_num_replicas) == (6, 4, processes)
    if processes == 1:  # the one shard is that of the first process
        ((images, labels),) = train.prefetch(lambda step: torch.arange(16), 1, key=(0,))
        seen.append(images)
        assert set(labels.tolist()) == {0, 1}
    for images in seen:
        assert (images - np.rint(deep / 257)).abs().max() == 0
    del train
    gc.collect()  # that package closes its files when they are collected, and warns
