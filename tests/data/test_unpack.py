"""Cached copies of archives: made once, by one process, complete or not at all."""

import errno
import multiprocessing
import os
import sys

import numpy as np
import pytest
import torch

from timm_paf.data import LabelledImages, open_archive, unpack
from timm_paf.data.disk import DiskImages

NHWC = np.random.RandomState(0).randint(0, 256, (60, 5, 4, 3), dtype=np.uint8)
NCHW = np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2))
LABEL = np.arange(60) * 3 // 60
HWCN = np.ascontiguousarray(NHWC.transpose(1, 2, 3, 0))
SOFT = np.eye(3)[LABEL]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / 'cache'


def opened(path, cache, mapped=True, **options):
    return open_archive(path, num_classes=3, mapped=mapped, cache_dir=cache, **options)


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith('.lock'))


# what tests of `open_archive` do not cover
FORMS = {
    'compressed floats': (np.savez_compressed, {'image': NHWC.astype('>f8'), 'label': SOFT}, {}),
    'compressed HWCN': (np.savez_compressed, {'image': HWCN, 'label': LABEL}, {}),
    'CHWN': (np.savez, {'image': np.ascontiguousarray(NCHW.transpose(1, 2, 3, 0)), 'label': LABEL}, {'layout': 'CHWN'}),
    'compressed Fortran order': (np.savez_compressed, {'image': np.asfortranarray(NCHW), 'label': LABEL}, {}),
    'Fortran soft labels': (np.savez, {'image': NHWC, 'label': np.asfortranarray(SOFT)}, {}),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_copy_in_many_pieces_is_complete(tmp_path, cache, monkeypatch, form):
    monkeypatch.setattr(unpack, 'CHUNK', 7)
    monkeypatch.setattr(unpack, '_BLOCK', 700)
    save, members, options = FORMS[form]
    save(tmp_path / 'a.npz', **members)
    source = opened(tmp_path / 'a.npz', cache, **options)
    assert isinstance(source, DiskImages) and source.image_shape == (3, 5, 4)
    assert cache in (source.pixels.path.parent, source.targets.path.parent) and source.name == 'a.npz'
    order = torch.tensor([59, 0, 33, 33])
    images, labels = source.take(order)
    assert torch.equal(images * (1 if images.dtype == torch.uint8 else 255), torch.from_numpy(NCHW)[order])
    assert (labels.argmax(1) if source.soft else labels).tolist() == LABEL[order].tolist()
    assert len(entries(cache)) == 1


@pytest.mark.parametrize('mapped', [None, False])
def test_small_ones_need_no_cache(tmp_path, cache, mapped):
    np.savez_compressed(tmp_path / 'a.npz', image=HWCN, label=LABEL)
    assert isinstance(opened(tmp_path / 'a.npz', cache, mapped=mapped), LabelledImages) and not cache.exists()


def deflated(path, image=NHWC, label=LABEL):
    np.savez_compressed(path, image=image, label=label)
    return path


def test_unpacked_once_per_content(tmp_path, cache):
    path, steps = deflated(tmp_path / 'a.npz'), []
    opened(path, cache, progress=lambda *step: steps.append(step))
    assert steps == [('unpacking a.npz', 3600, 3600), ('unpacking a.npz', 480, 480)]
    os.utime(path, (1, 1))
    opened(path, cache, progress=lambda *step: steps.append(step))
    assert len(steps) == 2
    source = opened(deflated(path, NHWC ^ 1), cache)
    assert torch.equal(source.take(torch.tensor([3]))[0], torch.from_numpy(NCHW[[3]] ^ 1)) and len(entries(cache)) == 2


def test_only_what_cannot_be_read_in_place_is_copied(tmp_path, cache):
    np.savez(tmp_path / 'a.npz', image=HWCN, label=LABEL)
    source = opened(tmp_path / 'a.npz', cache)
    assert source.pixels.path.parent == cache and source.targets.path == tmp_path / 'a.npz'
    with np.load(source.pixels.path) as copy:
        assert list(copy) == ['pixels'] and np.array_equal(copy['pixels'], NHWC)


def test_an_archive_that_changes_while_it_is_copied(tmp_path, cache):
    np.savez(tmp_path / 'a.npz', image=HWCN, label=LABEL)
    with pytest.raises(ValueError, match=r'a\.npz: changed since it was opened'):
        opened(tmp_path / 'a.npz', cache, progress=lambda *step: np.savez(tmp_path / 'a.npz', X=HWCN ^ 1, Y=LABEL))
    assert entries(cache) == []


@pytest.mark.parametrize('damage', [
    lambda copy: os.truncate(copy, 500), lambda copy: np.savez(copy, pixels=NHWC[:50], targets=LABEL),
    lambda copy: np.savez(copy, pixels=NHWC)], ids=['cut short', 'of other arrays', 'without labels'])
def test_a_copy_that_is_not_whole_is_made_again(tmp_path, cache, damage):
    source = opened(deflated(tmp_path / 'a.npz'), cache)
    damage(source.pixels.path)
    again = opened(tmp_path / 'a.npz', cache)
    assert np.array_equal(again.take(torch.arange(60))[0], NCHW)
    # messages about the content name the archive and not the copy
    with pytest.raises(ValueError, match=r"a\.npz: 'label' has values from 1 to 3.* at index 40"):
        opened(deflated(tmp_path / 'a.npz', label=LABEL + 1), cache)


def test_remains_of_a_killed_process_are_taken_away(tmp_path, cache):
    entry = opened(deflated(tmp_path / 'a.npz'), cache).pixels.path
    remains = cache / f'.{entry.name}.12345.abcd.tmp'
    entry.rename(remains)
    opened(tmp_path / 'a.npz', cache)
    assert entries(cache) == [entry.name]


def test_damaged_archives_leave_nothing_behind(tmp_path, cache):
    # large enough for the fault to lie behind what zipfile reads together with the header
    image = np.random.RandomState(2).randint(0, 256, (1200, 5, 4, 3), dtype=np.uint8)
    path = deflated(tmp_path / 'a.npz', image, np.arange(1200) % 3)
    content = bytearray(path.read_bytes())
    content[content.find(b'image.npy') + 20_000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: 'image' cannot be read \(.*; get the file again"):
        opened(tmp_path / 'a.npz', cache)
    assert entries(cache) == []


def full(fd):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_no_room(tmp_path, cache, monkeypatch):
    monkeypatch.setattr('os.fsync', full)
    message = r'a\.npz: cannot be unpacked into the cache .*No space left.*free some space.*TIMM_PAF_CACHE'
    with pytest.raises(ValueError, match=message):
        opened(deflated(tmp_path / 'a.npz'), cache)
    assert entries(cache) == []


def unpack_together(path, cache, barrier, queue):
    torch.set_num_threads(1)
    steps = []
    barrier.wait()
    source = opened(path, cache, progress=lambda *step: steps.append(step[0]))
    queue.put(('unpacking a.npz' in steps, source.take(torch.arange(len(source)))[0].numpy().sum(dtype=np.int64)))


def test_two_processes_start_together(tmp_path, cache):
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('this system does not fork')
    image = np.random.RandomState(1).randint(0, 256, (20_000, 8, 8, 3), dtype=np.uint8)
    path = deflated(tmp_path / 'a.npz', image, np.arange(20_000) % 3)
    context = multiprocessing.get_context('fork')
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=unpack_together, args=(path, cache, barrier, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(unpacked for unpacked, _ in results) == [False, True]
    assert {total for _, total in results} == {image.sum(dtype=np.int64)}
    assert len(entries(cache)) == 1


def test_without_locks_both_copies_are_whole(tmp_path, cache, monkeypatch):
    path = deflated(tmp_path / 'a.npz')
    monkeypatch.setitem(sys.modules, 'fcntl', None)

    def other_process(what, done, total):
        if done == 3600 and not entries_done:
            entries_done.append(opened(path, cache).pixels.path)

    entries_done = []
    source = opened(path, cache, progress=other_process)
    assert [source.pixels.path] == entries_done and len(entries(cache)) == 1
    assert np.array_equal(source.take(torch.arange(60))[0], NCHW)
