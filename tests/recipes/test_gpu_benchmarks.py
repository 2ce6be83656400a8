"""gpu.sh: its parts, their limits, its exit status; and the table of the targets."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.benchmarks import gpu_table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'recipes' / 'benchmarks' / 'gpu.sh'
# stands for Python: each benchmark writes a figure, fails or takes too long, as told
STAND_IN = f'''#!/usr/bin/env bash
case "$*" in
    *gpu_table.py*) exec {sys.executable} "$@" ;;
    *attack.py*) [[ $* == *autoattack* ]] || exec sleep 60 ;;
    *activations.py*) echo working; echo 'error: what went wrong' >&2; exit 3 ;;
esac
echo "$@"
while (($#)); do
    [[ $1 == --json ]] && echo \
        '{{"device": "CPU (any)", "measures": [{{"name": "all: here over package", "value": 0.65}}]}}' > "$2"
    shift
done
exit 0
'''


def run(output, **environment):
    return subprocess.run(
        [str(SCRIPT)], capture_output=True, text=True, env={
            **os.environ, 'OUTPUT': str(output), 'DEVICE': 'cpu', 'PYTHON': sys.executable, **environment})


def rows(lines):
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('| ')][2:]


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / 'python'
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return str(path)


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, stand_in):
    output = tmp_path / 'out'
    output.mkdir()
    (output / 'attack.json').write_text(json.dumps({'device': 'CPU (any)', 'measures': [
        {'name': 'timm_paf: over the floor', 'value': 1}]}))
    process = run(output, PYTHON=stand_in, LIMIT='9', RESERVE='0', PARTS='tests activations autoattack attack data')
    assert process.returncode == 1
    lines = process.stdout.splitlines()
    said = {line.split(':')[0]: line for line in lines if ': ' in line and not line.startswith(('|', ' '))}
    assert 'done' in said['tests'] and 'done' in said['autoattack'] and 'no time left' in said['data']
    assert 'FAILED' in said['activations'] and 'status 3' in said['activations']
    assert '    error: what went wrong' in lines
    assert 'FAILED' in said['attack'] and 'out of time' in said['attack']
    assert '-m gpu tests/' in (output / 'tests.log').read_text()
    table = rows(lines)
    assert len(table) == len(gpu_table.TARGETS) and lines[-1].startswith('| ')
    assert table[-3][2:] == ['0.65x', 'not judged: no GPU']
    assert table[-2][3] == 'not measured'  # what an earlier run has left does not count
    assert (output / 'table.md').read_text() in process.stdout


@pytest.mark.parametrize('environment, message', [
    ({'DEVICE': 'nowhere'}, 'torch finds no device nowhere'), ({'PARTS': 'tests nothing'}, 'PARTS has nothing'),
], ids=['device', 'part'])
def test_mistakes_are_said_at_once(tmp_path, environment, message):
    process = run(tmp_path, **environment)
    assert process.returncode == 2 and message in process.stderr and process.stderr.count('\n') == 1


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(tmp_path):
    process = run(tmp_path, QUICK='1')
    assert process.returncode == 0, process.stdout + process.stderr
    table = rows(process.stdout.splitlines())
    missing = [row[0] for row in table if row[3] == 'not measured']
    assert missing == ['PGD-10 update, ResNet-18 with PSSiLU, images/s over the plain float32 loop']
    assert 'torch ' in process.stdout and 'timm ' in process.stdout


def measures(**values):
    return {'step_wide': {name: {'name': name, 'value': value} for name, value in values.items()}}


def verdicts(found):
    return {row[0]: row[2:] for row in rows(gpu_table.table(found, judged=True))}


@pytest.mark.parametrize('value, verdict', [(0.949, 'missed'), (0.95, 'met'), (1.2, 'met')])
def test_the_fastest_setting_is_judged(value, verdict):
    name = 'wrn28_10_pssilu, bf16, {}: over wrn28_10_relu'
    speed = 'wrn28_10_pssilu, bf16, {}: images/s'
    found = verdicts(measures(**{
        name.format('eager'): value + 0.1, speed.format('eager'): 100.,
        name.format('compiled'): value, speed.format('compiled'): 300.}))
    assert found['PGD-10 update, WRN with PSSiLU, images/s over its ReLU twin'] == [
        f'{value:.3g}x (bf16, compiled)', verdict]
    assert sum(row[1] == 'not measured' for row in found.values()) == len(gpu_table.TARGETS) - 1


@pytest.mark.parametrize('ours, verdict', [(17., 'met'), (17.7, 'missed')])
def test_memory_is_compared_with_the_relu_network(ours, verdict):
    kept = 'kept for the backward pass'
    found = verdicts(measures(**{
        f'wrn28_10_pssilu, BatchNorm computed anew: {kept}': ours, f'wrn28_10_relu: {kept}': 17.6,
        f'wrn28_10_pssilu: {kept}': 26.3}))
    assert found['kept for backward, PSSiLU, BatchNorm computed anew, over ReLU in place'] == [
        f'{ours / 17.6:.3g}x', verdict]


@pytest.mark.parametrize('difference, noise, ratio, verdict', [
    (-2.9, 3., '0.967x', 'met'), (3.1, 3., '1.03x', 'missed'), (0., 0., '0x', 'met'), (-50., 0., 'infx', 'missed')])
def test_accuracy_is_compared_with_its_noise(difference, noise, ratio, verdict):
    found = verdicts({'short_run': {
        'difference of the means': {'value': difference}, 'noise of it': {'value': noise}}})
    row = found['robust accuracy after a short run, difference from the plain loop over its noise']
    assert row == [f'{ratio} ({difference:+.1f} points)', verdict]


def test_figures_of_another_device_do_not_count(tmp_path, capsys):
    for name, device in (('attack', 'NVIDIA H100'), ('autoattack', 'CPU (x86-64, 1 of 4 cores)')):
        (tmp_path / f'{name}.json').write_text(json.dumps({'device': device, 'measures': [
            {'name': 'timm_paf: over the floor', 'value': 1}, {'name': 'all: here over package', 'value': 0.5}]}))
    assert gpu_table.main([str(tmp_path), '--device', 'cpu']) == 0
    shown = capsys.readouterr().out
    found = {row[0]: row[2:] for row in rows(shown.splitlines())}
    assert found['PGD-10, time over bare passes'] == ['', 'not measured'] and 'attack.json' in shown.splitlines()[-1]
    assert found['AutoAttack, time over pyautoattack called directly, same verdicts'][0] == '0.5x'


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / 'a.json').write_text(json.dumps({'measures': [{'value': 1}]}))
    assert gpu_table.main([str(tmp_path), '--device', 'cpu']) == 2
    assert capsys.readouterr().err.startswith('error: ')
