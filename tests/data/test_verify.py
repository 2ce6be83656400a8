"""The full check finds every error that opening may miss, and reports where it is."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import DataChanged, ImagesWithout, LabelledImages, disk, open_archive, open_archives
from timm_paf.data.splits import SelectedImages
from timm_paf.data.verify import verify_archive

COUNT = 900
NHWC = np.random.RandomState(0).randint(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
LABEL = np.arange(COUNT) * 3 // COUNT


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(disk, '_ALL_LABELS', 0)
    monkeypatch.setattr(disk, '_SAMPLE', 8)


def changed(array, value, index=150):
    array = array.copy()
    array[index].flat[0] = value
    return array


def with_flipped_byte(path, member):
    content = bytearray(path.read_bytes())
    content[content.find(member.tobytes()) + len(member.tobytes()) // 2] ^= 1
    path.write_bytes(content)


VALUES = {
    'label too high': (NHWC, changed(LABEL[:, None], 3)[:, 0], r"'label' has values .* at index 150"),
    'NaN': (changed(NHWC / 255, np.nan), LABEL, "'image' has pixels from nan .* index 150"),
    'beyond 255': (changed(NHWC / 1, 256), LABEL, r'to 256 at index 150, .*\[0, 255\]'),
    'soft label': (NHWC, changed(np.eye(3)[LABEL], .5), "'label' has the row .* index 150"),
}


@pytest.mark.parametrize('fault', VALUES)
def test_values_out_of_range(tmp_path, fault):
    image, label, message = VALUES[fault]
    path = tmp_path / 'a.npz'
    np.savez(path, image=image, label=label)
    source = open_archive(path, num_classes=3, mapped=True)  # the sample does not see it
    source.take(torch.tensor([149, 151]))
    with pytest.raises(DataChanged, match=message):
        source.take(torch.tensor([149, 150]))
    for check in (lambda: verify_archive(source), lambda: verify_archive(path, num_classes=3)):
        with pytest.raises(ValueError, match=message) as caught:
            check()
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('flip, key', [(NHWC, 'image'), (LABEL, 'label')], ids=['pixel', 'label'])
def test_flipped_bits(tmp_path, flip, key):
    """Also in one part of several, and in a source of which a validation split is held out."""
    for name in 'abc':
        np.savez(tmp_path / f'{name}.npz', image=NHWC, label=LABEL)
    with_flipped_byte(tmp_path / 'c.npz', flip)
    source = open_archive(tmp_path / 'c.npz', num_classes=3, mapped=True)
    whole = open_archives([tmp_path / f'{name}.npz' for name in 'abc'], num_classes=3, mapped=True)
    parts = [ImagesWithout(source, torch.tensor([3, 5]), name='train')]
    if key == 'image':  # labels are read on opening
        parts.append(SelectedImages(source, torch.tensor([3, 5]), name='val'))
    for one in (source, whole, *parts):
        with pytest.raises(ValueError, match=rf"c\.npz: '{key}' is damaged .*CRC-32"):
            verify_archive(one)


def test_good_ones_and_progress(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    np.savez_compressed(tmp_path / 'b.npz', image=NHWC / 255, label=np.eye(3)[LABEL])
    np.save(tmp_path / 'images.npy', NHWC)
    np.save(tmp_path / 'labels.npy', LABEL)
    for name in ('a.npz', 'b.npz', 'images.npy'):
        steps = []
        checked = verify_archive(
            tmp_path / name, num_classes=3, cache_dir=tmp_path / 'cache', progress=lambda *step: steps.append(step))  # noqa: B023
        assert checked == COUNT
        assert all(done <= total for _, done, total in steps) and steps[-1][1] == steps[-1][2] >= NHWC.size


def test_a_damaged_copy_in_the_cache(tmp_path):
    np.savez_compressed(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = open_archive(tmp_path / 'a.npz', num_classes=3, mapped=True, cache_dir=tmp_path / 'cache')
    with_flipped_byte(source.pixels.path, NHWC)
    with pytest.raises(ValueError, match=r"\.npz: 'pixels' is damaged"):
        verify_archive(tmp_path / 'a.npz', num_classes=3, cache_dir=tmp_path / 'cache')


def test_a_file_that_changed_since(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = open_archive(tmp_path / 'a.npz', num_classes=3, mapped=True)
    with pytest.raises(ValueError, match='only with a path'):
        verify_archive(source, channels=3)
    os.utime(tmp_path / 'a.npz', (1, 1))
    assert verify_archive(source) == COUNT  # another time, but the content has the archive's checksum
    with_flipped_byte(tmp_path / 'a.npz', NHWC)
    with pytest.raises(ValueError, match='changed since it was opened'):
        verify_archive(source)


def test_folders(tmp_path):
    (tmp_path / '0').mkdir()
    for index in range(20):
        Image.fromarray(NHWC[index]).save(tmp_path / '0' / f'{index}.png')
    assert verify_archive(tmp_path) == 20
    file = tmp_path / '0' / '7.png'
    file.write_bytes(file.read_bytes()[:60])  # its header is good
    with pytest.raises(ValueError, match=r'7\.png: the image cannot be read'):
        verify_archive(tmp_path)


def test_a_source_that_does_not_check_what_it_gives():
    source = LabelledImages(torch.rand(700, 1, 1, 1), torch.zeros(700, dtype=torch.int64), 3, 'theirs')
    assert verify_archive(source) == 700
    source.images[600] = np.nan
    with pytest.raises(ValueError, match=r'theirs: .* \(indices 512 to 699\)'):
        verify_archive(source)
    source.images[600], source.labels[550] = 0, 3
    with pytest.raises(ValueError, match='labels from 0 to 3'):
        verify_archive(source)
