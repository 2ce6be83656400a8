"""gpu.sh: its parts, their limits and its exit status; and the table of the targets."""
import json
import os
import subprocess
import sys
import zipfile
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


def test_packages_come_from_wheels(tmp_path):
    (tmp_path / 'wheels').mkdir()
    with zipfile.ZipFile(tmp_path / 'wheels' / 'some-1-py3-none-any.whl', 'w') as wheel:
        wheel.writestr('some.py', 'print("imported")')
    python = tmp_path / 'python'
    python.write_text(f'#!/usr/bin/env bash\n[[ "$*" != *gpu_table.py* ]] || set -- -c "import some"\n'
                      f'exec {sys.executable} "$@"')
    python.chmod(0o755)
    process = run(tmp_path / 'out', PYTHON=str(python), PARTS='none', WHEELS=str(tmp_path / 'wheels'))
    assert (process.returncode, process.stdout) == (0, 'imported\n'), process.stderr


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
], ids=['worst activation', 'one misses', 'below', 'upper bound', 'high upper bound'])
def test_figures_are_judged(tmp_path, name, figures, what, expected):
    write(tmp_path, name, **dict.fromkeys(figures, 50.))  # an earlier call, which does not count
    write(tmp_path, name, **figures)
    assert cells(gpu_table.table(tmp_path))[what][1:] == expected


def test_hours_are_those_of_all_images(tmp_path):
    write(tmp_path, 'wide', **{'wrn28_10_pssilu, captured; speed': 1000.})
    rows = cells(gpu_table.table(tmp_path))
    network, updates, speed, taken = rows['`dai2021_cifar10_linf`']
    # 200 times ceil(48 976 / 256) updates of 512 images
    assert (network, updates, speed) == ('`wrn28_10_pssilu`', '38,400 of 512 images', '1,000')
    assert float(taken) == pytest.approx(38_400 * 512 / 1000 / 3600, rel=0.01)
    assert rows['`rebuffi2021_cifar10_linf`'][2] == 'about 852'  # 23 passes of 27, that is, with TRADES
    assert '`dai2021_cifar10_linf_real`' not in rows  # no ResNet-18 was measured
