"""adv_train.py and adv_validate.py: the same results as the engine's commands."""
import subprocess
import sys
from pathlib import Path

import adv_train
import adv_validate
import pytest
import torch

from timm_paf import engine

FAST = ['--model', 'wrn10_2_relu', '--epochs', '2', '--updates-per-epoch', '2', '--attack-steps', '1', '--pgd-steps',
        '2', '--synthetic-fraction', '0', '--autoattack', 'none', '--device', 'cpu']


def test_script_and_command_train_alike(tmp_path):
    """Weights, reports and measurements, bit for bit."""
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


@pytest.mark.parametrize('script', [adv_train, adv_validate], ids=lambda script: script.__name__)
def test_scripts_run_as_commands(script, tmp_path):
    """From any folder; a mistake gives status 2, one line on stderr and nothing on stdout."""
    result = subprocess.run([sys.executable, Path(script.__file__).resolve(), '--no-such-flag', '1'],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ''
    assert 'Traceback' not in result.stderr and '--no-such-flag' in result.stderr
    assert list(tmp_path.iterdir()) == []
