"""Images that stay on the disk are those that numpy reads, and nothing out of range ever reaches a batch."""

import copy
import os
import pickle

import numpy as np
import pytest
import torch

from timm_paf.data import ConcatenatedImages, LabelledImages, archives, disk, open_archive, open_archives
from timm_paf.data.datasets import all_labels as all_labels_of
from timm_paf.data.disk import DiskImages
from timm_paf.data.errors import DataChanged
from timm_paf.data.report import sample_indices
from timm_paf.data.stored import StoredArray

COUNT = 300
NHWC = np.random.RandomState(0).randint(0, 256, (COUNT, 5, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
LABEL = np.arange(COUNT) * 3 // COUNT
SOFT = np.random.RandomState(1).dirichlet([1, 1, 1], COUNT)


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


UNIT = NHWC / 255
HIDDEN = {
    'label too high': ({'image': NHWC, 'label': LABEL}, 'label', 150, 3, "'label' has values from 1 to 3.*index 150"),
    'NaN': ({'image': UNIT, 'label': LABEL}, 'image', 150, np.nan, "'image' has pixels from nan .* index 150"),
    'beyond 1': ({'image': UNIT, 'label': LABEL}, 'image', 150, 1.5, r'from 0.* to 1\.5 at index 150, .*in \[0, 1\]'),
    'beyond 255': ({'image': UNIT * 255, 'label': LABEL}, 'image', 150, 256, r'to 256 at index 150, .*in \[0, 255\]'),
    'soft label': ({'image': NHWC, 'label': SOFT}, 'label', 150, 2, "'label' has the row .* at index 150"),
}


@pytest.mark.parametrize('case', HIDDEN)
def test_what_the_sample_missed_stops_the_run(tmp_path, monkeypatch, case):
    members, key, index, value, message = HIDDEN[case]
    members = {name: array.copy() for name, array in members.items()}
    members[key][index].flat[0] = value
    if members[key].ndim == 1:
        members[key][index] = value
    np.savez(tmp_path / 'a.npz', **members)
    monkeypatch.setattr(disk, '_ALL_LABELS', 0)
    monkeypatch.setattr(disk, '_SAMPLE', 8)
    assert index not in sample_indices(COUNT, 8)
    source = opened(tmp_path / 'a.npz')
    source.take(torch.tensor([index - 1, index + 1]))
    with pytest.raises(DataChanged, match=message):
        source.take(torch.tensor([index - 1, index]))
    monkeypatch.undo()
    if key == 'label' and members[key].ndim == 1:
        with pytest.raises(ValueError, match=message.replace('from 1', 'from 0')):  # the full look finds it on opening
            opened(tmp_path / 'a.npz')


def test_a_part_that_changes_stops_the_run(tmp_path):
    for name in 'ab':
        np.savez(tmp_path / f'{name}.npz', image=NHWC, label=LABEL)
    whole = open_archives([tmp_path / 'a.npz', tmp_path / 'b.npz'], num_classes=3, mapped=True)
    whole.take(torch.tensor([0, 300]))
    np.savez(tmp_path / 'b.npz', image=NHWC[:299], label=LABEL[:299])
    whole.take(torch.tensor([0, 1]))
    with pytest.raises(DataChanged, match=r'b\.npz: changed since it was opened'):
        whole.take(torch.tensor([0, 300]))


def test_truncated_while_running(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = opened(tmp_path / 'a.npz')
    os.truncate(tmp_path / 'a.npz', 1000)
    with pytest.raises(DataChanged, match=r'a\.npz: (ends at offset|changed)'):
        source.take(torch.tensor([299]))


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


def test_copies_read_for_themselves(tmp_path):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=LABEL)
    source = opened(tmp_path / 'a.npz')
    for twin in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source)):
        assert np.array_equal(twin.take(torch.tensor([4]))[0], NCHW[[4]])


def test_the_report(tmp_path, monkeypatch):
    np.savez(tmp_path / 'a.npz', image=NHWC, label=np.where(LABEL == 1, 2, LABEL))
    report = opened(tmp_path / 'a.npz').report
    assert report.class_counts == (100, 0, 200) and report.sampled == report.images == COUNT
    assert str(report) == (
        '300 images 3x5x4 uint8, int64 labels from 0 to 2; in all labels, the rarest of 3 classes has 0.0 %, the most '
        'frequent 66.7 %, and 1 do not occur')
    monkeypatch.setattr(disk, '_ALL_LABELS', 0)
    monkeypatch.setattr(disk, '_SAMPLE', 30)
    np.savez(tmp_path / 'a.npz', image=NHWC.astype(np.float32), label=LABEL)
    report = opened(tmp_path / 'a.npz').report
    assert report.class_counts == (10, 10, 10) and report.pixel_range[0] >= 0 and report.pixel_range[1] > 250
    assert 'in a sample of 30 labels' in str(report)


@pytest.mark.parametrize('count', [1, 5, 1024, 1025, 1026, 5000, 10**8])
def test_the_sample(count):
    sample = sample_indices(count, 1024)
    assert len(sample) == min(count, 1024) and (np.diff(sample) > 0).all()
    assert sample[0] == 0 and sample[-1] == count - 1
    assert np.array_equal(sample, sample_indices(count, 1024))
    if count > 1e6:  # one index a stretch, so that a class-sorted archive shows each class in proportion
        assert (np.bincount(sample * 10 // count) >= 102).all()


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
