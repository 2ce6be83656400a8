"""gpu.sh: its parts, their limits and its exit status; and the table of the targets."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.benchmarks import gpu_table

SCRIPT = Path(__file__).resolve().parents[2] / 'recipes' / 'benchmarks' / 'gpu.sh'
# replaces Python: a benchmark writes a figure, fails, or does nothing
STAND_IN = f'''#!/usr/bin/env bash
case "$*" in
    *gpu_table.py*) exec {sys.executable} "$@" ;;
    *activations.py*) echo working; echo 'error: what went wrong' >&2; exit 3 ;;
    *autoattack.py*) echo '{{"device": "CPU", "figures": [{{"row": "time", "column": "here ÷ package",
        "median": 0.65, "low": 0.6, "high": 0.7}}]}}' > "$OUTPUT/autoattack.json" ;;
esac
'''


def run(output, **environment):
    return subprocess.run([str(SCRIPT)], capture_output=True, text=True, env={
        **os.environ, 'OUTPUT': str(output), 'DEVICE': 'cpu', 'PYTHON': sys.executable, **environment})


def cells(text):
    return {row[0]: row[1:] for row in (
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| '))}


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (tmp_path / 'attack.json').write_text('from an earlier run')
    process = run(tmp_path, PYTHON=str(python), PARTS='activations autoattack')
    lines = process.stdout.splitlines()
    assert process.returncode == 1
    assert lines[0].startswith('activations: FAILED') and '    error: what went wrong' in lines
    assert any(line.startswith('autoattack: done') for line in lines)
    assert not any(line.startswith('attack:') for line in lines)
    table = cells(process.stdout)
    assert len(table) == len(gpu_table.TARGETS) + 2
    assert table['AutoAttack over pyautoattack, time'][1:] == ['0.65 (0.6 … 0.7), time', 'not judged: no GPU']
    assert table['PGD-10 over bare passes, time'][2] == 'not measured'
    assert (tmp_path / 'table.md').read_text() in process.stdout


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(tmp_path):
    process = run(tmp_path, QUICK='1')
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'not measured' not in process.stdout


@pytest.mark.parametrize('value, verdict', [(0.949, 'missed'), (0.95, 'met'), (1.2, 'met')])
def test_the_best_setting_is_judged(tmp_path, capsys, value, verdict):
    figures = [{'row': f'wrn28_10_pssilu, bf16, {way}', 'column': '÷ wrn28_10_relu', 'median': median, 'low': 0.1,
                'high': 9.} for way, median in (('eager', 0.5), ('compiled', value))]
    (tmp_path / 'step_wide.json').write_text(json.dumps({'device': 'NVIDIA H100', 'figures': figures}))
    gpu_table.main(str(tmp_path))
    assert cells(capsys.readouterr().out)['Update of a WRN, PSSiLU over ReLU, speed'] == [
        '>= 0.95', f'{value:.3g} (0.1 … 9), wrn28_10_pssilu, bf16, compiled', verdict]
