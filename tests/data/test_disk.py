"""Images that stay on the disk are those that numpy reads, and nothing out of range ever reaches a batch."""

import os

import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, archives, disk, open_archive, open_archives
from timm_paf.data.datasets import all_labels as all_labels_of
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import DataChanged
from timm_paf.data.stored import StoredArray

COUNT = 300
NHWC = np.random.RandomState(0).randint(0, 256, (COUNT, 5, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
LABEL = np.arange(COUNT) * 3 // COUNT


def opened(path, **options):
    return open_archive(path, **{'num_classes': 3, 'mapped': True, **options})


@pytest.mark.parametrize('index', [-1, COUNT], ids=['before', 'behind'])
def test_indices_outside(tmp_path, index):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    with pytest.raises(IndexError, match=r'a\.npz: index outside 0\.\.299'):
        opened(tmp_path / 'a.npz').take(torch.tensor([0, index]))


def reads(monkeypatch):
    """The length of each read from now on."""
    lengths, true = [], StoredArray._read
    monkeypatch.setattr(StoredArray, '_read', lambda *args: lengths.append(len(args[2])) or true(*args))
    return lengths


def test_take_reads_only_what_it_is_asked_for(tmp_path, monkeypatch):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = opened(tmp_path / 'a.npz')
    read = reads(monkeypatch)
    source.take(torch.tensor([5, 200]))
    assert sum(read) == 2 * 60


def test_opening_parts_does_not_read_them(tmp_path, monkeypatch):
    for number in range(6):
        np.savez(tmp_path / f'part{number}.npz', image=NHWC, label=LABEL)
    read = reads(monkeypatch)
    whole = open_archives([tmp_path / f'part{n}.npz' for n in range(6)], num_classes=3, mapped=True)
    assert isinstance(whole, ConcatenatedImages) and len(whole) == 1800
    assert sum(read) == 6 * (COUNT * 8 + 2 * 60)  # the labels, the first and the last image
    monkeypatch.undo()
    x, y = whole.take(torch.tensor([1799, 0, 605]))
    assert np.array_equal(x, NCHW[[299, 0, 5]]) and y.tolist() == [2, 0, 0]


def test_a_part_that_changes_stops_the_run(tmp_path):
    for name in 'ab':
        np.savez(tmp_path / f'{name}.npz', image=NHWC, label=LABEL)
    whole = open_archives([tmp_path / 'a.npz', tmp_path / 'b.npz'], num_classes=3, mapped=True)
    whole.take(torch.tensor([0, 300]))
    np.savez(tmp_path / 'b.npz', image=NHWC[:299], label=LABEL[:299])
    whole.take(torch.tensor([0, 1]))
    with pytest.raises(DataChanged, match=r'b\.npz: changed since it was opened'):
        whole.take(torch.tensor([0, 300]))


class Batches(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 6

    def __getitem__(self, number):
        return self.source.take(torch.arange(50) + 50 * number)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_of_a_data_loader(tmp_path, method):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    loader = torch.utils.data.DataLoader(
        Batches(opened(tmp_path / 'a.npz')), batch_size=None, num_workers=1, multiprocessing_context=method)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    assert np.array_equal(images, NCHW) and labels.tolist() == LABEL.tolist()


def test_fingerprint(tmp_path):
    sets = {'a': (NHWC, LABEL), 'b': (NHWC, LABEL), 'c': (NHWC ^ 1, LABEL), 'd': (NHWC, LABEL[::-1])}
    for name, (image, label) in sets.items():
        np.savez(tmp_path / f'{name}.npz', image=image, label=label)
    prints = [opened(tmp_path / f'{name}.npz').fingerprint() for name in 'abcd']
    assert prints[0] == prints[1] and len(set(prints)) == 3


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='no /proc')
def test_a_pass_over_a_large_file_takes_no_memory(tmp_path):
    count = 60_000
    with open(tmp_path / 'images.bin', 'wb') as file:
        file.truncate(count * 3072)  # 184 MB of zeros; a mapped file would add them to the process
    np.save(tmp_path / 'labels.npy', np.arange(count) % 10)
    before = resident()
    source, order = opened(tmp_path / 'images.bin', num_classes=10), torch.randperm(count)
    most = 0
    for indices in order.split(1000):
        _, labels = source.take(indices)
        assert torch.equal(labels, indices % 10)
        most = max(most, resident() - before)
    assert most < 40e6


@pytest.mark.parametrize('all_labels', [1 << 25, 0], ids=['kept', 'read'])
def test_class_numbers_need_no_image(tmp_path, monkeypatch, all_labels):
    monkeypatch.setattr(disk, '_ALL_LABELS', all_labels)
    monkeypatch.setattr(disk, '_LABEL_CHUNK', 64)
    soft = np.eye(3, dtype=np.float32)[LABEL] * 0.7 + 0.1
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    np.savez(tmp_path / 'b.npz', image=NHWC, label=soft)
    for name in ('a', 'b'):
        source = opened(tmp_path / f'{name}.npz')
        monkeypatch.setattr(source, 'take', None)
        assert torch.equal(all_labels_of(source), torch.from_numpy(LABEL))


def test_many_small_parts_stay_on_the_disk(tmp_path, monkeypatch):
    """Each is below the bound, together they are not: 18 kB a part."""
    paths = [tmp_path / f'{number}.npz' for number in range(4)]
    for path in paths:
        np.savez(path, image=NHWC, label=LABEL)
    for bound, kind in ((100_000, LabelledImages), (40_000, DiskImages)):
        monkeypatch.setattr(archives, 'IN_MEMORY', bound)
        assert {type(part) for part in open_archives(paths, num_classes=3).parts} == {kind}
