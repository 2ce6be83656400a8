"""The command that writes an archive of synthetic images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timm_paf.data import digits_splits, open_archive, sample_synthetic

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'recipes' / 'make_synthetic.py'


def run(*args, cwd=None):
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, SCRIPT, *args], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import make_synthetic
    return make_synthetic.main


def test_command(tmp_path):
    done = run('--dataset', 'digits', '--num-images', '105', '--output', 'd.npz', '--seed', '4', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert '105 images' in done.stdout and '[11, 11, 11, 11, 11, 10, 10, 10, 10, 10]' in done.stdout
    data = open_archive(tmp_path / 'd.npz', num_classes=10)
    again = sample_synthetic(digits_splits().train, 105, seed=4)
    # the two processes may use another number of BLAS threads, whose sums differ in the last digit
    assert torch.equal(data.labels, again.labels)
    assert ((data.images.int() - again.images.int()).abs() > 1).float().mean() < 0.05
    assert os.listdir(tmp_path) == ['d.npz']


def test_existing_file_is_kept_unless_told(tmp_path, main, capsys):
    path = tmp_path / 'd.npz'
    path.write_bytes(b'precious')
    assert main(['--num-images', '20', '--output', str(path)]) == 2
    assert 'is already there' in capsys.readouterr().err
    assert path.read_bytes() == b'precious'
    assert main(['--num-images', '20', '--output', str(path), '--overwrite']) == 0
    assert len(open_archive(path, num_classes=10)) == 20


BAD = {
    'too few': ['--num-images', '9'],
    'not a number': ['--num-images', 'many'],
    'too many components': ['--components', '65'],
    'no mixtures': ['--mixtures', '0'],
    'no such data set': ['--dataset', 'letters'],
    'no such option': ['--frobnicate'],
    'other suffix': ['--output', 'd.npy'],
    'no such folder': ['--output', 'nowhere/d.npz'],
    'a folder': ['--output', 'folder.npz', '--overwrite'],
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, main, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.npz').mkdir()
    arguments = ['--output', 'd.npz', *BAD[case]]
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ''
    assert captured.err.count('\n') == 1
    assert os.listdir(tmp_path) == ['folder.npz']


def test_output_is_required(main, capsys):
    assert main([]) == 2
    assert '--output is missing' in capsys.readouterr().err
