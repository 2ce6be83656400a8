"""The commands tell OpenMP not to spin, before torch reads it; an import in a user's own program does not."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'
# ends at the import of torch, with the settings at this moment; runs a script, or imports the package as a program does
SPY = """
import importlib.abc, os, runpy, sys
class Spy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'torch':
            sys.exit(' '.join(os.environ.get(key, '-') for key in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')))
sys.meta_path.insert(0, Spy())
sys.argv = sys.argv[1:]
sys.orig_argv = ['python', *sys.argv]
if sys.argv[0].startswith('recipes/'):
    runpy.run_path(sys.argv[0])
import timm_paf
"""


@pytest.mark.parametrize('argv, given, expected', [
    ('-u -m timm_paf train', {}, '1000 1'), ('-m timm_paf', {'GOMP_SPINCOUNT': '5'}, '5 1'),
    ('-m timm_paf', {'OMP_WAIT_POLICY': 'ACTIVE'}, '- -'), ('my_script.py', {}, '- -'), ('-m timm', {}, '- -'),
    ('recipes/adv_train.py', {}, '1000 1'), ('recipes/adv_validate.py', {'GOMP_SPINCOUNT': '5'}, '5 1'),
    ('recipes/adv_train.py', {'OMP_WAIT_POLICY': 'ACTIVE'}, '- -'), ('recipes/make_synthetic.py', {}, '1000 1'),
    ('recipes/shape_sweep.py', {}, '1000 1'),
])
def test_set_before_torch_is_imported_and_for_the_commands_alone(argv, given, expected):
    environment = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, 'OMP_WAIT_POLICY')}
    shown = subprocess.run([sys.executable, '-c', SPY, *argv.split()], env=environment | given, capture_output=True,
                           text=True, cwd=ROOT)
    assert shown.stderr.strip() == expected
