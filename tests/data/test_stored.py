"""Rows read in place: equal to numpy's, from any process, and never from a file that changed."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from timm_paf.data.errors import DataChanged
from timm_paf.data.stored import StoredArray, stamp

ROWS = np.random.RandomState(0).randint(0, 2**16, (2000, 5, 3)).astype('>u2')
OFFSET = 13  # odd: nothing is aligned


@pytest.fixture
def array(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'x' * OFFSET + ROWS.tobytes() + b'y' * 7)
    return StoredArray(path, ROWS.shape, ROWS.dtype, stamp(os.stat(path)), OFFSET, key='rows')


def opener_of_short_reads(path, *args, **kwargs):
    """Files that return a part of what is asked for, as network file systems may."""
    class Short(io.FileIO):
        def readinto(self, view):
            return super().readinto(view[:11])

    return Short(path)


@pytest.mark.parametrize('order', [
    [], [1999], [5, 5, 4, 4, 6], range(1999, 0, -1), np.random.RandomState(1).permutation(2000)[:97],
], ids=['none', 'the last', 'twice the same', 'backwards', 'scattered'])
@pytest.mark.parametrize('short', [False, True], ids=['whole reads', 'short reads'])
def test_rows_are_those_of_the_file(array, monkeypatch, order, short):
    if short:
        monkeypatch.setattr('timm_paf.data.stored.open', opener_of_short_reads, raising=False)
    indices = np.array(list(order), np.int64)
    rows = array.rows(indices)
    assert rows.dtype == ROWS.dtype and np.array_equal(rows, ROWS[indices])


def test_chunks_are_the_whole(array):
    chunks = list(array.chunks(9000))
    assert [start for start, _ in chunks] == list(range(0, 2000, 300))
    assert np.array_equal(np.concatenate([rows for _, rows in chunks]), ROWS)
    assert np.array_equal(array.range(3, 9), ROWS[3:9])


def overwrite(path):
    with open(path, 'r+b') as file:
        file.write(b'z')
    os.utime(path, ns=(1, 1))  # clocks of file systems may be coarser than this test


def replace_by_an_equal_one(path):
    path.with_name('b').write_bytes(path.read_bytes())
    path.with_name('b').replace(path)


@pytest.mark.parametrize('change', [
    overwrite, replace_by_an_equal_one, os.unlink, lambda path: os.truncate(path, 50),
    lambda path: path.write_bytes(path.read_bytes() + b'x'),
], ids=['written to', 'replaced', 'removed', 'shorter', 'longer'])
def test_a_change_is_noticed(array, change):
    array.check()
    twin = pickle.loads(pickle.dumps(array))
    change(array.path)
    for read in (array.check, lambda: array.rows(np.array([1])), lambda: twin.range(0, 2)):
        with pytest.raises(DataChanged, match=r'changed since it was opened|No such file') as caught:
            read()
        assert str(array.path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_change_while_reading_is_noticed(array, monkeypatch):
    """The file is truncated between two rows of one call."""
    true = StoredArray._read

    def truncating(self, file, view, offset):
        true(self, file, view, offset)
        os.truncate(self.path, 1000)

    monkeypatch.setattr(StoredArray, '_read', truncating)
    with pytest.raises(DataChanged, match='changed since it was opened'):
        array.rows(np.array([3, 1999]))


def test_a_file_that_ends_too_early(array):
    os.truncate(array.path, 1000)
    with pytest.raises(DataChanged, match='ends at offset 1000, 59013 bytes too early'):
        replace(array, stamp=stamp(os.stat(array.path))).range(0, 2000)


def test_threads_read_for_themselves(array):
    orders = [np.random.RandomState(seed).permutation(2000)[:200] for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for order, rows in zip(orders, pool.map(array.rows, orders), strict=True):
            assert np.array_equal(rows, ROWS[order])
