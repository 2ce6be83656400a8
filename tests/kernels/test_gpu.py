"""The Triton source, in processes of their own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name('triton_cases.py')
pytest.importorskip('triton')


def passes(**environment):
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', str(CASES)], capture_output=True, text=True,
        env={**os.environ, **environment})
    assert process.returncode == 0, process.stdout[-3000:]
    assert ' passed' in process.stdout


def test_in_tritons_interpreter():
    passes(TRITON_INTERPRET='1')


@pytest.mark.gpu
def test_on_a_gpu():
    passes(TRITON_INTERPRET='0')
