"""gpu.sh: its parts, their limits and its exit status; and the table of the targets."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes.benchmarks import gpu_table

SCRIPT = Path(__file__).resolve().parents[2] / 'recipes' / 'benchmarks' / 'gpu.sh'
# replaces Python: a benchmark writes a figure, fails, or does nothing
STAND_IN = f'''#!/usr/bin/env bash
case "$*" in
    *gpu_table.py* | -) exec {sys.executable} "$@" ;;
    *activations.py*) echo working; echo 'error: what went wrong' >&2; exit 3 ;;
    *autoattack.py*) echo '{{"runs": [{{"device": "CPU", "started": "2026-01-02T03:04:05", "versions": {{"torch": "9"}},
        "figures": [{{"row": "time", "column": "here ÷ package", "median": 0.65, "low": 0.6, "high": 0.7, "rounds": 3}}
        ]}}]}}' > "$OUTPUT/autoattack.json" ;;
esac
'''


def run(output, **environment):
    return subprocess.run([str(SCRIPT)], capture_output=True, text=True, env={
        **os.environ, 'OUTPUT': str(output), 'DEVICE': 'cpu', 'PYTHON': sys.executable, **environment})


def cells(text):
    return {row[0]: row[1:] for row in (
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| '))}


def write(folder, name, device='NVIDIA H100', **figures):
    """A run with figures {'row; column': median}, added to those in a file."""
    path = folder / f'{name}.json'
    runs = json.loads(path.read_text())['runs'] if path.exists() else []
    found = [
        dict(zip(('row', 'column'), key.split('; '), strict=True), median=value, low=0.1, high=99., rounds=2)
        for key, value in figures.items()]
    run = {'device': device, 'started': '2026-01-02T03:04:05', 'versions': {'torch': '9.9'}, 'figures': found}
    path.write_text(json.dumps({'runs': [*runs, run]}))


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    write(tmp_path, 'wide', **{'wrn28_10_pssilu, captured; speed': 1500.})  # from an earlier call
    process = run(tmp_path, PYTHON=str(python), PARTS='kernels autoattack')
    lines = process.stdout.splitlines()
    assert process.returncode == 1
    assert lines[0].startswith('kernels: FAILED') and '    error: what went wrong' in lines
    assert any(line.startswith('autoattack: done') for line in lines)
    assert not any(line.startswith('train:') for line in lines)
    table = cells(process.stdout)
    assert table['AutoAttack, time over pyautoattack called directly'][1:] == ['0.65 (0.6 … 0.7); time', 'no GPU']
    assert table['update of a WRN-28-10, PSSiLU, images/s'][2] == 'met'
    assert table['start of adv_train.py to its first update, s'][2] == 'not measured'
    assert 'CPU, 2026-01-02, torch 9.' in lines and 'NVIDIA H100, 2026-01-02, torch 9.9.' in lines
    assert (tmp_path / 'table.md').read_text() in process.stdout


def test_packages_of_a_folder(tmp_path):
    """Without installed packages: those that are missing are named, and PYTHONPATH may hold them."""
    python, folder = tmp_path / 'python', tmp_path / 'packages'
    python.write_text(f'#!/usr/bin/env bash\n[[ "$*" != *gpu_table.py* ]] || exit 0\nexec {sys.executable} -S "$@"')
    python.chmod(0o755)
    missing = run(tmp_path / 'out', PYTHON=str(python), PARTS='none', PYTHONPATH='')
    assert missing.returncode == 2 and missing.stderr.startswith('these modules are missing: torch, torchvision, ')
    folder.mkdir()
    for name in missing.stderr.split(': ')[1].split(';')[0].split(', '):
        (folder / f'{name}.py').touch()
    assert run(tmp_path / 'out', PYTHON=str(python), PARTS='none', PYTHONPATH=str(folder)).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize('data', [False, True], ids=['digits', 'archives'])
def test_a_rehearsal_on_the_cpu(tmp_path, data):
    environment = {}
    if data:
        for name, count in (('train', 1200), ('test', 40)):
            images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
            np.savez(tmp_path / f'{name}.npz', image=images, label=np.arange(count) % 10)
        environment['DATA'] = str(tmp_path)
    process = run(tmp_path / 'out', QUICK='1', **environment)
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'not measured' not in process.stdout


KERNELS = {f'{name}, fused: gradient of x alone; ÷ SiLU': value for name, value in (
    ('pssilu', 1.02), ('psilu', 1.03), ('relu', 7.))}


@pytest.mark.parametrize('name, figures, what, expected', [
    ('kernels', KERNELS, '… gradient of x alone', ['1.03 (0.1 … 99); psilu, fused: gradient of x alone', 'met']),
    ('kernels', {**KERNELS, 'reblu, fused: gradient of x alone; ÷ SiLU': 1.04}, '… gradient of x alone',
     ['1.04 (0.1 … 99); reblu, fused: gradient of x alone', 'missed']),
    ('narrow', {'resnet18_pssilu, captured; ÷ resnet18_relu': 0.999}, 'update of a ResNet-18, PSSiLU, speed over ReLU',
     ['0.999 (0.1 … 99); resnet18_pssilu, captured', 'missed']),
    ('autoattack', {'time; here ÷ package, at most': 0.4}, 'AutoAttack, time over pyautoattack called directly',
     ['at most 0.4 (0.1 … 99); time', 'met']),
    ('autoattack', {'time; here ÷ package, at most': 0.6}, 'AutoAttack, time over pyautoattack called directly',
     ['at most 0.6 (0.1 … 99); time', 'not decided']),
    ('wide', {'a_pssilu, captured; ÷ a_relu': 0.9, 'b_pssilu, captured; ÷ b_relu': 0.8}, '… speed over ReLU',
     ['0.9 (0.1 … 99); a_pssilu, captured', '']),
], ids=['worst activation', 'one misses', 'below', 'upper bound', 'high upper bound', 'best without a target'])
def test_figures_are_judged(tmp_path, name, figures, what, expected):
    write(tmp_path, name, **dict.fromkeys(figures, 50.))  # an earlier call, which does not count
    write(tmp_path, name, **figures)
    assert cells(gpu_table.table(tmp_path))[what][1:] == expected
