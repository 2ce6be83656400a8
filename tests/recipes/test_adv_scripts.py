"""adv_train.py and adv_validate.py: the same results as the engine's commands, over public names only."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from timm_paf import engine

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
SCRIPTS = [RECIPES / 'adv_train.py', RECIPES / 'adv_validate.py']
FAST = ['--model', 'wrn10_2_relu', '--epochs', '2', '--updates-per-epoch', '2', '--attack-steps', '1', '--pgd-steps',
        '2', '--synthetic-fraction', '0', '--autoattack', 'none', '--device', 'cpu']


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_story_over_public_names(path):
    assert len(path.read_text().splitlines()) <= 130
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in nodes if (node.module or '').startswith('timm_paf') for alias in node.names]
    assert names and set(names) <= set(engine.__all__)
    assert {node.module for node in nodes if (node.module or '').startswith('timm_paf')} == {'timm_paf.engine'}
    assert 'sys.path' not in path.read_text()


def test_script_and_command_train_alike(tmp_path):
    """Weights, reports and measurements, bit for bit."""
    import adv_train
    import adv_validate
    import torch
    for name, train in (('script', adv_train.main), ('command', engine.train)):
        assert train([*FAST, '--output', str(tmp_path), '--experiment', name]) == 0
    one, two = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=True)['state_dict']
                for name in ('script', 'command'))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (sorted(path.name for path in (tmp_path / 'script').iterdir())
            == sorted(path.name for path in (tmp_path / 'command').iterdir()))
    argv = ['--checkpoint', str(tmp_path / 'script' / 'last.pth.tar'), '--no-trust', '--pgd-steps', '2',
            '--autoattack', 'none', '--device', 'cpu', '--output']
    for name, validate in (('a', adv_validate.main), ('b', engine.validate)):
        assert validate([*argv, str(tmp_path / name)]) == 0
        assert {path.name for path in (tmp_path / name).iterdir()} == {'report.json', 'report.html'}


# ends at the import of torch, with the settings of OpenMP's waiting threads at this moment
SPY = """
import importlib.abc, os, runpy, sys
class Spy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'torch':
            sys.exit(str([os.environ.get(key) for key in ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME')]))
sys.meta_path.insert(0, Spy())
runpy.run_path(sys.argv[1])
"""


@pytest.mark.parametrize('given, expected', [
    ({}, ['1000', '1']), ({'GOMP_SPINCOUNT': '7'}, ['7', '1']), ({'OMP_WAIT_POLICY': 'ACTIVE'}, [None, None])],
    ids=['unset', 'spin count', 'wait policy'])
@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_openmp_threads_wait_without_spinning(path, given, expected):
    unset = {'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'OMP_WAIT_POLICY'}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    result = subprocess.run([sys.executable, '-c', SPY, path], capture_output=True, text=True, env=environment)
    assert result.stderr.strip() == str(expected)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_as_commands(path, tmp_path):
    """From any folder; a mistake gives status 2, one line on stderr and nothing on stdout."""
    result = subprocess.run(
        [sys.executable, path, '--no-such-flag', '1'], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ''
    assert 'Traceback' not in result.stderr and '--no-such-flag' in result.stderr
    assert list(tmp_path.iterdir()) == []
