"""Archives of the forms in the wild, written here, and everything that can be wrong with one."""

import io
import zipfile

import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, disk, open_archive, open_archives, save_archive
from timm_paf.data import archives as archives_module
from timm_paf.data.disk import DiskImages

COUNT = 300
NHWC = np.random.RandomState(0).randint(0, 256, (COUNT, 5, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
HWCN = np.ascontiguousarray(NHWC.transpose(1, 2, 3, 0))
LABEL = np.arange(COUNT) * 3 // COUNT
SOFT = np.random.RandomState(1).dirichlet([1, 1, 1], COUNT)
UNIT = NCHW.astype(np.float32) / np.float32(255)


def large_zip(path, **members):
    """An archive in zip64 form and with a foreign member first, as of more than 4 GiB."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello' * 5)
        for key, array in members.items():
            with archive.open(f'{key}.npy', 'w', force_zip64=True) as file:
                np.save(file, array)


def behind_a_prefix(path, **members):
    np.savez(path, **members)
    path.write_bytes(b'#!/bin/sh\n' + path.read_bytes())


# name -> (writer, members, options, expected images, expected labels)
FORMATS = {
    'CIFAR-5m': (np.savez, {'X': NHWC, 'Y': LABEL.astype(np.uint8)}, {}, NCHW, LABEL),
    'compressed HWCN': (np.savez_compressed, {'X': HWCN, 'Y': LABEL}, {}, NCHW, LABEL),
    'NCHW': (np.savez, {'image': NCHW, 'label': LABEL}, {'layout': 'NCHW'}, NCHW, LABEL),
    'HWCN as MATLAB writes it': (np.savez, {'X': np.asfortranarray(HWCN), 'Y': LABEL}, {}, NCHW, LABEL),
    'Fortran order': (np.savez, {'image': np.asfortranarray(NHWC), 'label': LABEL}, {}, NCHW, LABEL),
    'zip64': (large_zip, {'image': NHWC, 'label': LABEL}, {}, NCHW, LABEL),
    'behind a prefix': (behind_a_prefix, {'image': NHWC, 'label': LABEL}, {}, NCHW, LABEL),
    'uint64 labels': (np.savez, {'image': NHWC, 'label': LABEL.astype(np.uint64)}, {'channels': 3}, NCHW, LABEL),
    'float16 to 255': (np.savez, {'image': NHWC.astype(np.float16), 'label': LABEL}, {}, UNIT, LABEL),
    'big-endian floats': (np.savez, {'image': NHWC.astype('>f4'), 'label': LABEL}, {}, UNIT, LABEL),
    'soft labels in float16': (np.savez, {'image': NHWC, 'label': SOFT.astype(np.float16)}, {}, NCHW, SOFT),
}


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('where', ['in memory', 'on disk', 'labels on disk'])
def test_take_returns_what_was_written(tmp_path, monkeypatch, format, where):
    if where == 'labels on disk':
        monkeypatch.setattr(disk, '_ALL_LABELS', 0)
    write, members, options, images, targets = FORMATS[format]
    write(tmp_path / 'a.npz', **members)
    mapped = None if where == 'in memory' else True
    source = open_archive(
        tmp_path / 'a.npz', num_classes=3, mapped=mapped, cache_dir=tmp_path / 'cache', **options)
    assert isinstance(source, LabelledImages if where == 'in memory' else DiskImages) and source.name == 'a.npz'
    assert len(source) == COUNT and source.image_shape == (3, 5, 4) and source.num_classes == 3
    order = torch.tensor([299, 0, 7, 7, 100, 101, 102])
    x, y = source.take(order)
    assert x.dtype == (torch.uint8 if images.dtype == np.uint8 else torch.float32)
    assert torch.equal(x, torch.from_numpy(images)[order])
    if targets.ndim == 1:
        assert y.dtype == torch.int64 and y.tolist() == targets[order].tolist()
    else:
        assert y.dtype == torch.float32 and np.allclose(y, targets[order], atol=1e-3)
        assert torch.allclose(y.sum(1), torch.ones(7), atol=1e-6)
    empty, none = source.take(torch.tensor([], dtype=torch.int64))
    assert empty.shape == (0, 3, 5, 4) and len(none) == 0


FEW, FEW_X, FEW_Y = NHWC[:6], NCHW[:6], np.array([0, 1, 2, 2, 1, 0])


def with_nan(array, index):
    array[index].flat[1] = np.nan
    return array


SOFT = np.eye(3)[FEW_Y] * .7 + .1
SQUARE = np.zeros((6, 3, 3, 3), np.uint8)


class Bomb:
    def __reduce__(self):
        return open, ('exploded', 'w')


BAD = {
    'keys of two kinds': ({'image': FEW, 'Y': FEW_Y}, {}, 'holds image, Y; expected'),
    'empty': ({}, {}, 'holds nothing; expected'),
    'integer images': ({'image': FEW.astype(int), 'label': FEW_Y}, {}, "'image' is of dtype int64, expected uint8"),
    'normalised images': ({'image': FEW / 127.5 - 1, 'label': FEW_Y}, {}, "'image' has pixels from -.* at index 0,"),
    'images beyond 255': ({'image': FEW * 2., 'label': FEW_Y}, {}, r'expected finite values in \[0, 255\]'),
    'NaN in an image': ({'image': with_nan(FEW / 255, 4), 'label': FEW_Y}, {}, 'pixels from nan .* index 4'),
    'soft labels that do not add up': ({'image': FEW, 'label': SOFT * 1.1}, {}, r'index 0\), expected probabilities'),
    'no images': ({'image': FEW[:0], 'label': FEW_Y[:0]}, {}, 'nothing empty'),
    'object labels': (
        {'image': FEW, 'label': np.array([Bomb()] * 6, object)}, {}, "'label' is of dtype object: .* not read"),
    'float labels': ({'image': FEW, 'label': FEW_Y / 1}, {}, "'label' is of dtype float64, expected integers"),
    'counts differ': ({'image': FEW, 'label': FEW_Y[:5]}, {}, r"'label' has shape \(5,\) for 6 images"),
    'no classes': ({'image': FEW, 'label': FEW_Y}, {'num_classes': 0}, 'got num_classes=0'),
    'label too high': ({'X': FEW, 'Y': FEW_Y + 1}, {}, "'Y' has values from 1 to 3 .*index 2.* expected 0 to 2"),
    'label beyond int64': ({'image': FEW, 'label': FEW_Y.astype(np.uint64) + np.uint64(2**63)}, {}, 'from 92233'),
    'other channels': ({'image': FEW, 'label': FEW_Y}, {'channels': 1}, "'image' has shape .* expected 1 channels"),
    'other layout': ({'image': FEW, 'label': FEW_Y}, {'layout': 'NCHW'}, r'expected 1 or 3 channels.*\(NCHW\)'),
    'layout left open': ({'image': SQUARE, 'label': FEW_Y}, {}, 'NHWC or NCHW; choose one with layout='),
    'no such layout': ({'image': FEW, 'label': FEW_Y}, {'layout': 'HWC'}, "layout='HWC'"),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_members(tmp_path, monkeypatch, case):
    members, options, message = BAD[case]
    np.savez(tmp_path / 'a.npz', **members)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        open_archive(tmp_path / 'a.npz', **{'num_classes': 3, **options})
    assert '\n' not in str(caught.value)
    assert case in ('no such layout', 'no classes') or str(tmp_path / 'a.npz') in str(caught.value)
    assert not (tmp_path / 'exploded').exists()  # nothing was unpickled


def written(**members):
    np.savez(buffer := io.BytesIO(), **members)
    return buffer.getvalue()


GOOD = written(image=FEW, label=FEW_Y)


def with_flipped_pixel():
    content = bytearray(GOOD)
    where = content.find(FEW.tobytes())
    content[where + 100] ^= 1
    return bytes(content)


def with_member(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as source, zipfile.ZipFile(buffer, 'w') as target:
        for member in source.namelist():
            target.writestr(member, content(source.read(member)) if member == f'{name}.npy' else source.read(member))
    return buffer.getvalue()


BROKEN = {
    'truncated': (lambda: GOOD[:-200], 'not a readable .npz'),
    'empty file': (lambda: b'', 'not a readable .npz'),
    'flipped bit': (with_flipped_pixel, "'image' .*CRC"),
    'short member': (lambda: with_member('image', lambda data: data[:-1]), "'image' holds 359 bytes .* 360"),
    'member is no array': (lambda: with_member('image', lambda data: b'hello'), "'image' cannot be read"),
    'lying header': (
        lambda: with_member('image', lambda data: data.replace(b'(6, 5, 4, 3), }        ', b'(6, 5, 4, 333333333), }')),
        "'image' holds 360 bytes .* 39999999960",
    ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_files(tmp_path, case):
    content, message = BROKEN[case]
    (tmp_path / 'a.npz').write_bytes(content())
    with pytest.raises(ValueError, match=message) as caught:
        open_archive(tmp_path / 'a.npz', num_classes=3)
    assert '\n' not in str(caught.value) and 'a.npz' in str(caught.value)


def test_several_archives_follow_each_other_without_a_copy(tmp_path, monkeypatch):
    np.savez(tmp_path / 'a.npz', image=FEW[:2], label=FEW_Y[:2])
    np.savez(tmp_path / 'b.npz', X=FEW_X[2:], Y=FEW_Y[2:])
    np.savez(tmp_path / 'smaller.npz', image=FEW[:, :4], label=FEW_Y)
    monkeypatch.setattr(torch, 'cat', None)  # joining by copying would need it
    whole = open_archives([tmp_path / 'a.npz', tmp_path / 'b.npz'], num_classes=3)
    monkeypatch.undo()
    assert isinstance(whole, ConcatenatedImages)
    images, labels = whole.take(torch.arange(6))
    assert np.array_equal(images.numpy(), FEW_X) and labels.tolist() == FEW_Y.tolist()
    assert isinstance(open_archives([tmp_path / 'a.npz'], num_classes=3), LabelledImages)
    with pytest.raises(ValueError, match=r'smaller\.npz holds images of shape'):
        open_archives([tmp_path / 'a.npz', tmp_path / 'smaller.npz'], num_classes=3)
    with pytest.raises(FileNotFoundError, match=r'c\.npz: no such file'):
        open_archives([tmp_path / 'a.npz', tmp_path / 'c.npz'], num_classes=3)
    for paths in ([], 'a.npz'):
        with pytest.raises(ValueError, match='at least one path'):
            open_archives(paths, num_classes=3)


@pytest.mark.parametrize('limit, kind', [(2000, LabelledImages), (360, DiskImages), (359, DiskImages)])
def test_what_is_read_whole(tmp_path, monkeypatch, limit, kind):
    """Also many small parts stay on the disk if together they are above the limit: 360 bytes of images each."""
    for name in 'ab':
        np.savez(tmp_path / f'{name}.npz', image=FEW, label=FEW_Y)
    monkeypatch.setattr(archives_module, 'IN_MEMORY', limit)
    whole = open_archives([tmp_path / 'a.npz', tmp_path / 'b.npz'], num_classes=3)
    assert {type(part) for part in whole.parts} == {kind}
    alone = LabelledImages if limit >= 360 else DiskImages
    assert isinstance(open_archive(tmp_path / 'a.npz', num_classes=3), alone)


def test_saved_archive_is_an_edm_archive(tmp_path):
    data = LabelledImages(torch.from_numpy(FEW_X), torch.from_numpy(FEW_Y), 3, 'saved')
    save_archive(tmp_path / 'a.npz', data)
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as archive:
        assert sorted(archive) == ['image', 'label']
        assert archive['image'].dtype == np.uint8 and np.array_equal(archive['image'], FEW)
        assert archive['label'].dtype == np.int64 and np.array_equal(archive['label'], FEW_Y)
    save_archive(tmp_path / 'b.npz', data)
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()
    with pytest.raises(ValueError, match='archives hold uint8'):
        save_archive(tmp_path / 'c.npz', LabelledImages(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), 2, 'floats'))
    assert not (tmp_path / 'c.npz').exists()
