"""Rows read in place: equal to numpy's, from any process, and never from a file that changed."""

import copy
import io
import multiprocessing
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from timm_paf.data.errors import DataChanged
from timm_paf.data.stored import Stamp, StoredArray

ROWS = np.random.RandomState(0).randint(0, 2**16, (2000, 5, 3)).astype('>u2')
OFFSET = 13  # odd: nothing is aligned


@pytest.fixture
def array(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'x' * OFFSET + ROWS.tobytes() + b'y' * 7)
    return StoredArray(path, 'rows', ROWS.shape, ROWS.dtype, Stamp.of(os.stat(path)), OFFSET)


ORDERS = {
    'none': [],
    'one': [7],
    'the last': [1999],
    'scattered': np.random.RandomState(1).permutation(2000)[:97],
    'twice the same': [5, 5, 4, 4, 6],
    'next to each other': range(100, 110),
    'backwards': range(1999, 0, -1),
}


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('short', [False, True], ids=['whole reads', 'short reads'])
def test_rows_are_those_of_the_file(array, monkeypatch, order, short):
    if short:
        monkeypatch.setattr('timm_paf.data.stored.open', opener_of_short_reads, raising=False)
    indices = np.array(list(ORDERS[order]), np.int64)
    rows = array.rows(indices)
    assert rows.dtype == ROWS.dtype and np.array_equal(rows, ROWS[indices])


def opener_of_short_reads(path, *args, **kwargs):
    """Files that return a part of what is asked for, as network file systems may."""
    class Short(io.FileIO):
        def readinto(self, view):
            return super().readinto(view[:11])

    return Short(path)


def test_chunks_are_the_whole(array):
    chunks = list(array.chunks(9000))
    assert [start for start, _ in chunks] == list(range(0, 2000, 300))
    assert np.array_equal(np.concatenate([rows for _, rows in chunks]), ROWS)
    assert np.array_equal(array.load(), ROWS) and np.array_equal(array.range(3, 9), ROWS[3:9])


def overwrite(path):
    with open(path, 'r+b') as file:
        file.write(b'z')
    os.utime(path, ns=(1, 1))  # clocks of file systems may be coarser than this test


def replace(path):
    content = path.read_bytes()
    path.with_name('b').write_bytes(content)
    path.with_name('b').replace(path)


CHANGES = {
    'written to': (overwrite, 'it was written to'),
    'longer': (lambda path: path.write_bytes(path.read_bytes() + b'x'), 'had 60020 bytes and has 60021 now'),
    'shorter': (lambda path: os.truncate(path, 50), 'had 60020 bytes and has 50 now'),
    'replaced by an equal one': (replace, 'another file'),
    'removed': (os.unlink, 'No such file'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_is_noticed(array, change):
    array.check()
    copies = [array, copy.deepcopy(array), pickle.loads(pickle.dumps(array))]
    make, message = CHANGES[change]
    make(array.path)
    for one in copies:
        for read in (one.check, lambda: one.rows(np.array([1])), lambda: one.range(0, 2)):  # noqa: B023
            with pytest.raises(DataChanged, match=message) as caught:
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
    array = StoredArray(array.path, 'rows', ROWS.shape, ROWS.dtype, Stamp.of(os.stat(array.path)), OFFSET)
    with pytest.raises(DataChanged, match='ends at offset 1000, 59013 bytes too early'):
        array.range(0, 2000)


def test_a_forked_process_reads_for_itself(array):
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('this system does not fork')
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(array.rows(np.array([3, 1]))))
    child.start()
    assert np.array_equal(queue.get(), ROWS[[3, 1]])
    child.join()


def test_threads_do_not_disturb_each_other(array):
    orders = [np.random.RandomState(seed).permutation(2000)[:200] for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for order, rows in zip(orders, pool.map(array.rows, orders), strict=True):
            assert np.array_equal(rows, ROWS[order])


def test_files_are_closed(array):
    before = len(os.listdir('/dev/fd')) if os.path.exists('/dev/fd') else pytest.skip('no /dev/fd')
    for _ in range(20):
        array.rows(np.array([1]))
    assert len(os.listdir('/dev/fd')) == before


def test_checksum(array):
    content = bytearray(array.path.read_bytes())

    def checked():
        return StoredArray(
            array.path, 'rows', ROWS.shape, ROWS.dtype, Stamp.of(os.stat(array.path)), OFFSET, member=3, crc=crc)

    crc = zlib.crc32(content[3:-7])
    assert np.array_equal(checked().load(), ROWS)
    content[30000] ^= 1
    array.path.write_bytes(content)
    with pytest.raises(DataChanged, match=r"'rows' is damaged .*CRC-32"):
        checked().load()
