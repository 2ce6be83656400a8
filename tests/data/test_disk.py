"""Images that stay on the disk are those that numpy reads, and nothing out of range ever reaches a batch."""

import os

import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, all_labels, disk, open_archive, open_archives
from timm_paf.data.stored import StoredArray

COUNT = 300
NHWC = np.random.RandomState(0).randint(0, 256, (COUNT, 5, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
LABEL = np.arange(COUNT) * 3 // COUNT


def opened(path, **options):
    return open_archive(path, **{'num_classes': 3, 'mapped': True, **options})


@pytest.fixture
def parts(tmp_path):
    paths = [tmp_path / f'part{number}.npz' for number in range(4)]
    for path in paths:
        np.savez(path, image=NHWC, label=LABEL)
    return paths


def test_only_what_is_asked_for_is_read(parts, monkeypatch):
    reads, true = [], StoredArray._read
    monkeypatch.setattr(StoredArray, '_read', lambda *args: reads.append(len(args[2])) or true(*args))
    whole = open_archives(parts, num_classes=3, mapped=True)
    assert isinstance(whole, ConcatenatedImages) and len(whole) == 1200
    assert sum(reads) == 4 * (COUNT * 8 + 2 * 60)  # the labels, the first and the last image
    reads.clear()
    x, y = whole.take(torch.tensor([1199, 0, 605]))
    assert sum(reads) == 3 * 60
    assert np.array_equal(x, NCHW[[299, 0, 5]]) and y.tolist() == [2, 0, 0]
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match=r'part0\.npz: index -?\d+ is out of range; there are 300'):
            whole.parts[0].take(torch.tensor([0, index]))


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='no /proc')
def test_a_pass_over_a_large_file_takes_no_memory(tmp_path):
    count = 30_000
    with open(tmp_path / 'images.bin', 'wb') as file:
        file.truncate(count * 3072)  # 92 MB of zeros; a mapped file would add them to the process
    np.save(tmp_path / 'labels.npy', np.arange(count) % 10)
    before = resident()
    source = opened(tmp_path / 'images.bin', num_classes=10)
    most = 0
    for indices in torch.randperm(count).split(1000):
        _, labels = source.take(indices)
        assert torch.equal(labels, indices % 10)
        most = max(most, resident() - before)
    assert most < 40e6


@pytest.mark.parametrize('kept', [1 << 25, 0], ids=['kept', 'read'])
@pytest.mark.parametrize('soft', [False, True], ids=['hard', 'soft'])
def test_class_numbers_need_no_image(tmp_path, monkeypatch, kept, soft):
    monkeypatch.setattr(disk, '_ALL_LABELS', kept)
    monkeypatch.setattr(disk, '_LABEL_CHUNK', 64)
    np.savez(tmp_path / 'a.npz', image=NHWC, label=np.eye(3)[LABEL] * 0.7 + 0.1 if soft else LABEL)
    source = opened(tmp_path / 'a.npz')
    monkeypatch.setattr(source, 'take', None)
    assert torch.equal(all_labels(source), torch.from_numpy(LABEL))
