"""The Triton source in Triton's interpreter, which has to be chosen before Triton is imported: in its own process."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton')


@pytest.mark.parametrize('name', ['test_triton.py', 'test_triton_norm.py'])
def test_kernels_without_a_gpu(name):
    cases = Path(__file__).with_name(name)
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', str(cases)], capture_output=True, text=True,
        env={**os.environ, 'TRITON_INTERPRET': '1'})
    assert process.returncode == 0, process.stdout[-3000:]
    assert ' passed' in process.stdout
