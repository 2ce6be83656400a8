"""The manifest of synthetic images in parts: what is accepted, and errors that name the file."""

import hashlib
import json

import pytest

from timm_paf.data import manifest_parts, read_manifest


def part(number):
    content = f'part {number}'.encode()
    return {'file': f'part-{number:05}.npz', 'images': 3, 'sha256': hashlib.sha256(content).hexdigest()}


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        (tmp_path / f'part-{number:05}.npz').write_bytes(f'part {number}'.encode())
    (tmp_path / 'manifest.json').write_text(json.dumps({
        'format': 'timm_paf synthetic images 1', 'seed': 3, 'num_parts': 2, 'parts': [part(0), part(1)]}))
    return tmp_path


def test_parts_of_a_finished_folder(folder):
    assert manifest_parts(folder, verify=True) == [folder / 'part-00000.npz', folder / 'part-00001.npz']
    manifest = read_manifest(folder)
    assert (manifest['seed'], manifest['complete'], len(manifest['parts'])) == (3, True, 2)


def edit(**changes):
    def change(folder):
        path = folder / 'manifest.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


DAMAGE = {
    'no manifest': (lambda folder: (folder / 'manifest.json').unlink(), FileNotFoundError, 'manifest.json: no such'),
    'not JSON': (lambda folder: (folder / 'manifest.json').write_text('{"a":'), ValueError, 'not a manifest'),
    'a list': (lambda folder: (folder / 'manifest.json').write_text('[]'), ValueError, 'not a manifest'),
    'another format': (edit(format='other 2'), ValueError, "format 'other 2'"),
    'unfinished': (edit(num_parts=3), ValueError, '2 of 3 parts'),
    'part gone': (lambda folder: (folder / 'part-00001.npz').unlink(), FileNotFoundError, 'part-00001.npz is missing'),
    'part changed': (lambda folder: (folder / 'part-00001.npz').write_bytes(b'x'), ValueError, '00001.npz: its SHA'),
    'part elsewhere': (edit(parts=[part(0) | {'file': '../secret'}]), ValueError, 'secret'),
    'part without a hash': (edit(parts=[{'file': 'a.npz'}]), ValueError, "'sha256' is missing"),
    'part of another form': (edit(parts=[3]), ValueError, 'not a manifest'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_is_one_line_that_names_the_file(folder, damage):
    change, error, message = DAMAGE[damage]
    change(folder)
    if damage == 'part changed':
        assert len(manifest_parts(folder)) == 2  # without verify, only the names are checked
    with pytest.raises(error, match=message) as caught:
        manifest_parts(folder, verify=True)
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)
