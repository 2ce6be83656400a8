"""The Python code on pages of the documentation runs as it is."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('page', sorted((ROOT / 'docs' / 'extending').glob('*.md')), ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path):
    blocks = re.findall(r'^```python\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / 'page.py'  # a file, because TorchScript reads sources
    script.write_text('import torch\ntorch.manual_seed(0)\n' + '\n\n'.join(blocks))
    # a process of its own, since the examples register names
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, 'PYTHONPATH': path})
    assert run.returncode == 0, run.stderr[-3000:]
