"""The full check finds every error that opening may miss, and reports where it is."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from timm_paf.data import DataChanged, ImagesWithout, LabelledImages, disk, open_archive, open_archives
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


def relabelled(value, index=150):
    label = LABEL.copy()
    label[index] = value
    return label


def with_flipped_byte(path, member):
    content = bytearray(path.read_bytes())
    content[content.find(member.tobytes()) + len(member.tobytes()) // 2] ^= 1
    path.write_bytes(content)


FAULTS = {
    'label too high': ({'image': NHWC, 'label': relabelled(3)}, None, r"'label' has values .* at index 150"),
    'label negative': ({'image': NHWC, 'label': relabelled(-1)}, None, 'at index 150'),
    'NaN': ({'image': changed(NHWC / 255, np.nan), 'label': LABEL}, None, "'image' has pixels from nan .* index 150"),
    'beyond 255': ({'image': changed(NHWC / 1, 256), 'label': LABEL}, None, r'to 256 at index 150, .*\[0, 255\]'),
    'beyond 1': ({'image': changed(NHWC / 255, 1.01), 'label': LABEL}, None, r'to 1\.01 at index 150,'),
    'soft label': ({'image': NHWC, 'label': changed(np.eye(3)[LABEL], .5)}, None, "'label' has the row .* index 150"),
    'flipped pixel': ({'image': NHWC, 'label': LABEL}, NHWC, "'image' is damaged .*CRC-32"),
    'flipped label': ({'image': NHWC, 'label': LABEL}, LABEL, "'label' is damaged .*CRC-32"),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('opened', [False, True], ids=['path', 'source'])
def test_faults_of_archives(tmp_path, fault, opened):
    members, flip, message = FAULTS[fault]
    path = tmp_path / 'a.npz'
    np.savez(path, **members)
    if flip is not None:
        with_flipped_byte(path, flip)
    source = open_archive(path, num_classes=3, mapped=True)  # the sample does not see it
    source.take(torch.tensor([149, 151]))
    if flip is None:  # a checksum needs the whole archive, but no batch contains a value out of range
        with pytest.raises(DataChanged, match=message):
            source.take(torch.tensor([149, 150]))
    with pytest.raises(ValueError, match=message) as caught:
        verify_archive(source) if opened else verify_archive(path, num_classes=3)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_good_ones_and_progress(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    np.savez_compressed(tmp_path / 'b.npz', image=NHWC / 255, label=np.eye(3)[LABEL])
    np.save(tmp_path / 'images.npy', NHWC)
    np.save(tmp_path / 'labels.npy', LABEL)
    (tmp_path / 'images.bin').write_bytes(NHWC.tobytes())
    for name in ('a.npz', 'b.npz', 'images.npy', 'images.bin'):
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


def test_parts_are_checked_one_by_one(tmp_path):
    for name in 'abc':
        np.savez(tmp_path / f'{name}.npz', image=NHWC, label=LABEL)
    with_flipped_byte(tmp_path / 'c.npz', NHWC)
    whole = open_archives([tmp_path / f'{name}.npz' for name in 'abc'], num_classes=3, mapped=True)
    with pytest.raises(ValueError, match=r"c\.npz: 'image' is damaged"):
        verify_archive(whole)


def test_a_file_that_changed_since(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = open_archive(tmp_path / 'a.npz', num_classes=3, mapped=True)
    os.utime(tmp_path / 'a.npz', (1, 1))
    with pytest.raises(ValueError, match='changed since it was opened'):
        verify_archive(source)


def test_folders(tmp_path):
    (tmp_path / '0').mkdir()
    for index in range(20):
        Image.fromarray(NHWC[index]).save(tmp_path / '0' / f'{index}.png')
    assert verify_archive(tmp_path, num_classes=1) == 20
    file = tmp_path / '0' / '7.png'
    file.write_bytes(file.read_bytes()[:60])  # its header is good
    with pytest.raises(ValueError, match=r'7\.png: cannot be decoded'):
        verify_archive(tmp_path, num_classes=1)


class Unchecked:
    """A source of someone else's that does not check what it gives."""

    name, num_classes, image_shape = 'theirs', 3, (1, 1, 1)

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        return self.images[indices], self.labels[indices]


def test_other_sources(tmp_path):
    images, labels = torch.rand(700, 1, 1, 1), torch.zeros(700, dtype=torch.int64)
    assert verify_archive(LabelledImages(images, labels, 3, 'memory')) == 700
    images[600] = np.nan
    with pytest.raises(ValueError, match=r'theirs: .* \(indices 512 to 699\)'):
        verify_archive(Unchecked(images, labels))
    images[600], labels[550] = 0, 3
    with pytest.raises(ValueError, match='labels from 0 to 3'):
        verify_archive(Unchecked(images, labels))


def test_options(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    with pytest.raises(ValueError, match='only with a path'):
        verify_archive(open_archive(tmp_path / 'a.npz', num_classes=3), channels=3)
    with pytest.raises(FileNotFoundError):
        verify_archive(tmp_path / 'b.npz', num_classes=3)


def test_a_flipped_pixel_is_found_behind_a_wrapper(tmp_path):
    """A validation split is held out by a wrapper; the checksum is that of the archive all the same."""
    path = tmp_path / 'a.npz'
    np.savez(path, image=NHWC, label=LABEL)
    with_flipped_byte(path, NHWC)
    source = open_archive(path, num_classes=3, mapped=True)
    with pytest.raises(ValueError, match=r"a\.npz.*image"):
        verify_archive(ImagesWithout(source, torch.tensor([3, 5]), name='train'))
