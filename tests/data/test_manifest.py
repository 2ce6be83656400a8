"""The record beside synthetic images: what it takes, what it refuses, and that it is written whole."""

import hashlib
import json

import pytest

from timm_paf.data.manifest import (
    Manifest,
    PartRecord,
    file_sha256,
    manifest_parts,
    read_manifest,
    read_part_record,
    write_json,
)


def record(number, per_class=(2, 1)):
    content = f'part {number}'.encode()
    return PartRecord(
        file=f'part-{number:05}.npz', images=sum(per_class), per_class=per_class, drawn=10,
        rejected={'duplicate': 3, 'surplus': 7 - sum(per_class)}, sha256=hashlib.sha256(content).hexdigest(),
        versions={'torch': '2'})


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        (tmp_path / f'part-{number:05}.npz').write_bytes(f'part {number}'.encode())
    Manifest(plan={'seed': 3, 'num_parts': 2}, parts=(record(0), record(1, (0, 4)))).save(tmp_path)
    return tmp_path


def test_what_is_saved_is_read(folder):
    manifest = read_manifest(folder)
    assert manifest == Manifest(plan={'seed': 3, 'num_parts': 2}, parts=(record(0), record(1, (0, 4))))
    before = (folder / 'manifest.json').read_bytes()
    manifest.save(folder)
    assert (folder / 'manifest.json').read_bytes() == before


def test_counts_are_sums(folder):
    assert read_manifest(folder).counts() == {
        'images': 7, 'per_class': [2, 5], 'drawn': 20, 'rejected': {'duplicate': 6, 'surplus': 7}}
    assert Manifest(plan={'num_parts': 2}).counts() == {'images': 0, 'per_class': [], 'drawn': 0, 'rejected': {}}


def test_parts_of_a_finished_folder(folder):
    assert manifest_parts(folder, verify=True) == [folder / 'part-00000.npz', folder / 'part-00001.npz']


def edit(**changes):
    def change(folder):
        path = folder / 'manifest.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


def edit_part(**changes):
    return lambda folder: edit(parts=[json.loads((folder / 'manifest.json').read_text())['parts'][0] | changes])(folder)


DAMAGE = {
    'no manifest': (lambda folder: (folder / 'manifest.json').unlink(), FileNotFoundError, 'manifest.json: no such'),
    'not JSON': (lambda folder: (folder / 'manifest.json').write_text('{"a":'), ValueError, 'not readable as JSON'),
    'not text': (lambda folder: (folder / 'manifest.json').write_bytes(b'\xff'), ValueError, 'not readable as JSON'),
    'a list': (lambda folder: (folder / 'manifest.json').write_text('[]'), ValueError, "format 'list'"),
    'another format': (edit(format='other 2'), ValueError, "got format 'other 2'"),
    'no parts': (edit(parts=None), ValueError, 'parts or num_parts is missing'),
    'no number': (edit(num_parts='2'), ValueError, 'parts or num_parts is missing'),
    'unfinished': (edit(num_parts=3), ValueError, '2 of 3 parts are made'),
    'part gone': (lambda folder: (folder / 'part-00001.npz').unlink(), FileNotFoundError, 'part-00001.npz: no such'),
    'part changed': (lambda folder: (folder / 'part-00001.npz').write_bytes(b'x'), ValueError, '00001.npz: its SHA'),
    'part elsewhere': (edit_part(file='../secret'), ValueError, 'expected a plain name'),
    'field too many': (edit_part(extra=1), ValueError, 'was it changed by hand'),
    'classes as a number': (edit_part(per_class=3), ValueError, 'no whole number'),
    'classes as texts': (edit_part(per_class=['2', '1']), ValueError, 'no whole number'),
    'rejected as a list': (edit_part(rejected=[1]), ValueError, 'no whole number'),
    'images as a text': (edit_part(images='3'), ValueError, 'no whole number'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_is_one_line_that_names_the_file(folder, damage):
    change, error, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(error, match=message) as caught:
        manifest_parts(folder, verify=True)
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)


def test_a_changed_part_is_found_only_when_asked(folder):
    (folder / 'part-00001.npz').write_bytes(b'x')
    assert len(manifest_parts(folder)) == 2


def test_record_of_a_part(tmp_path):
    write_json(tmp_path / 'part.json', json.loads(json.dumps(record(0).__dict__)))
    assert read_part_record(tmp_path / 'part.json') == record(0)
    with pytest.raises(FileNotFoundError):
        read_part_record(tmp_path / 'other.json')


@pytest.mark.parametrize('size', [0, 1, 2**20, 2**20 + 1])
def test_hash_of_a_file(tmp_path, size):
    (tmp_path / 'file').write_bytes(b'a' * size)
    assert file_sha256(tmp_path / 'file') == hashlib.sha256(b'a' * size).hexdigest()


@pytest.mark.parametrize('content', [{'a': float('nan')}, {'a': object()}], ids=['NaN', 'no JSON'])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, content):
    write_json(tmp_path / 'file.json', {'a': 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / 'file.json', content)
    assert [path.name for path in tmp_path.iterdir()] == ['file.json']
    assert json.loads((tmp_path / 'file.json').read_text()) == {'a': 1}
