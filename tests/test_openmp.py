"""The commands tell OpenMP not to spin, before torch reads it; an import in a user's own program does not."""
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import timm_paf

SETTINGS = 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'
FIRST_IMPORT_OF_TORCH = '''
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            print(os.environ.get('GOMP_SPINCOUNT'))
            os._exit(0)
sys.meta_path.insert(0, Finder())
sys.orig_argv = ['python', '-m', 'timm_paf', 'train']
import timm_paf
'''


@pytest.mark.parametrize('argv, given, expected', [
    (['python', '-u', '-m', 'timm_paf', 'train'], {}, ['1000', '1']),
    (['python', '-m', 'timm_paf'], {'GOMP_SPINCOUNT': '5'}, ['5', '1']),
    (['python', '-m', 'timm_paf'], {'OMP_WAIT_POLICY': 'ACTIVE'}, [None, None]),
    (['python', 'my_script.py'], {}, [None, None]), (['python', '-m', 'timm'], {}, [None, None]),
], ids=['command', 'own value', 'own policy', 'script', 'another module'])
def test_set_for_the_commands_alone(monkeypatch, argv, given, expected):
    for name in (*SETTINGS, 'OMP_WAIT_POLICY'):
        monkeypatch.setenv(name, given.get(name, ''))  # restored afterwards
        if name not in given:
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, 'orig_argv', argv)
    runpy.run_path(str(Path(timm_paf.__file__).with_name('_openmp.py')))
    assert [os.environ.get(name) for name in SETTINGS] == expected


def test_set_before_torch_is_imported():
    environment = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, 'OMP_WAIT_POLICY')}
    shown = subprocess.run(
        [sys.executable, '-c', FIRST_IMPORT_OF_TORCH], env=environment, capture_output=True, text=True,
        cwd=Path(timm_paf.__file__).parents[1])
    assert shown.stdout == '1000\n', shown.stderr
