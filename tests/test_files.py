"""Files written whole or not at all, and their hashes."""
import hashlib

import pytest

from timm_paf._files import cache_dir, file_sha256, whole_file


@pytest.mark.parametrize('size', [0, 1, 2**20, 2**20 + 1])
def test_hash_of_a_file(tmp_path, size):
    (tmp_path / 'file').write_bytes(b'a' * size)
    assert file_sha256(tmp_path / 'file') == hashlib.sha256(b'a' * size).hexdigest()


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b'new')
        raise KeyError
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [({'TIMM_PAF_CACHE': '{tmp}/own', 'XDG_CACHE_HOME': '{tmp}/xdg'}, 'own'),
     ({'XDG_CACHE_HOME': '{tmp}/xdg'}, 'xdg/timm_paf'), ({'XDG_CACHE_HOME': 'relative'}, 'home/.cache/timm_paf')])
def test_cache_folder(tmp_path, monkeypatch, variables, expected):
    monkeypatch.delenv('TIMM_PAF_CACHE', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    assert cache_dir() == tmp_path / expected
