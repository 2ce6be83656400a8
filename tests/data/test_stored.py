"""Rows read in place: equal to numpy's, whatever the system returns, from any process, and never of a changed file."""

import multiprocessing
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from timm_paf.data import stored
from timm_paf.data.errors import DataChanged
from timm_paf.data.stored import DiskFile, MemoryFile, StoredArray

ROWS = np.random.RandomState(0).randint(0, 2**16, (2000, 5, 3)).astype('>u2')
OFFSET = 13  # odd: nothing is aligned


@pytest.fixture
def path(tmp_path):
    (tmp_path / 'a').write_bytes(b'x' * OFFSET + ROWS.tobytes() + b'y' * 7)
    return tmp_path / 'a'


def array_at(path):
    return StoredArray(path, 'rows', OFFSET, ROWS.shape, ROWS.dtype)


ORDERS = {
    'none': [],
    'one': [7],
    'the last': [1999],
    'scattered': np.random.RandomState(1).permutation(2000)[:97],
    'twice the same': [5, 5, 4, 4, 6],
    'next to each other': range(100, 110),
    'backwards': range(1999, 0, -1),
    'all, more than one call takes': np.random.RandomState(1).permutation(2000),
}


@pytest.fixture(params=['preadv', 'no preadv', 'short reads', 'memory'])
def reader(request, path, monkeypatch):
    if request.param == 'no preadv':
        monkeypatch.delattr(os, 'preadv')
    if request.param == 'short reads':
        true = os.preadv

        def short(fd, buffers, offset):
            # ends in the middle of a row, as a network file system may
            return true(fd, [buffers[0], buffers[1][:7]] if len(buffers) > 1 else [buffers[0][:11]], offset)

        monkeypatch.setattr(os, 'preadv', short)
    if request.param == 'memory':
        return MemoryFile(path, np.frombuffer(path.read_bytes(), np.uint8))
    return DiskFile(path)


@pytest.mark.parametrize('order', ORDERS)
def test_rows_are_those_of_the_file(path, reader, order):
    indices = np.array(list(ORDERS[order]), np.int64)
    rows = array_at(path).read_rows(reader, indices)
    assert rows.dtype == ROWS.dtype and np.array_equal(rows, ROWS[indices])


def test_chunks_are_the_whole(path, reader):
    chunks = list(array_at(path).chunks(reader, 300))
    assert [start for start, _ in chunks] == list(range(0, 2000, 300))
    assert np.array_equal(np.concatenate([rows for _, rows in chunks]), ROWS)


def test_rows_next_to_each_other_are_one_call(path, monkeypatch):
    calls, true = [], os.preadv
    monkeypatch.setattr(os, 'preadv', lambda fd, buffers, offset: calls.append(offset) or true(fd, buffers, offset))
    array_at(path).read_rows(DiskFile(path), np.array([12, 11, 40, 10, 41]))
    assert calls == [OFFSET + 10 * 30, OFFSET + 40 * 30]


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
    'replaced by an equal one': (replace, 'another file stands in its place'),
    'removed': (os.unlink, 'is gone since it was opened'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_is_noticed(path, change):
    file = DiskFile(path)
    file.check()
    copy = pickle.dumps(file)
    make, message = CHANGES[change]
    make(path)
    with pytest.raises(DataChanged, match=message) as caught:
        file.check()
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    with pytest.raises(DataChanged):  # nor does another process read it
        pickle.loads(copy)


def test_a_file_that_ends_too_early(path):
    file = DiskFile(path)
    os.truncate(path, 1000)
    with pytest.raises(DataChanged, match='ends at offset 1000, 59013 bytes before it should'):
        array_at(path).read_range(file, 0, 2000)


def test_a_forked_process_reads_for_itself(path, monkeypatch):
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('this system does not fork')
    file, array = DiskFile(path), array_at(path)
    monkeypatch.delattr(os, 'preadv')  # without it a position is shared unless the child opens the file itself
    context = multiprocessing.get_context('fork')
    queue = context.Queue()

    def read():
        queue.put((array.read_rows(file, np.array([3, 1])), os.lseek(file._fd, 0, os.SEEK_CUR)))

    child = context.Process(target=read)
    child.start()
    rows, position = queue.get()
    child.join()
    assert np.array_equal(rows, ROWS[[3, 1]])
    assert os.lseek(file._fd, 0, os.SEEK_CUR) != position


@pytest.mark.parametrize('seek', [False, True], ids=['preadv', 'no preadv'])
def test_threads_do_not_disturb_each_other(path, monkeypatch, seek):
    if seek:
        monkeypatch.delattr(os, 'preadv')
    file, array = DiskFile(path), array_at(path)
    orders = [np.random.RandomState(seed).permutation(2000)[:200] for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for order, rows in zip(orders, pool.map(lambda order: array.read_rows(file, order), orders), strict=True):
            assert np.array_equal(rows, ROWS[order])


def test_files_are_closed_with_their_last_user(path):
    before = len(os.listdir('/dev/fd')) if os.path.exists('/dev/fd') else pytest.skip('no /dev/fd')
    for _ in range(20):
        DiskFile(path)
    assert len(os.listdir('/dev/fd')) == before


def test_checksum(path, monkeypatch):
    monkeypatch.setattr(stored, 'CHUNK', 1000)
    content, seen = path.read_bytes(), []
    array = StoredArray(path, 'rows', OFFSET, ROWS.shape, ROWS.dtype, (3, 60010, zlib.crc32(content[3:60013])))
    array.check_crc(DiskFile(path), lambda *step: seen.append(step))
    assert seen[-1] == ('checking rows', 60010, 60010) and len(seen) == 61
    damaged = bytearray(content)
    damaged[30000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataChanged, match=r"'rows' cannot be read as it was written \(the CRC-32 of bytes"):
        array.check_crc(DiskFile(path))


def test_too_many_open_files(path):
    import resource
    import subprocess
    import sys
    code = (
        'import resource, sys; from timm_paf.data.stored import DiskFile\n'
        'resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n'
        'try: files = [DiskFile(sys.argv[1]) for _ in range(100)]\n'
        'except ValueError as error: print(error)')
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 64
    done = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f'{path}: cannot be opened, the system allows no more open files')
