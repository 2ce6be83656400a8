"""The worked examples in docs/extending run as they stand, from the first block to the last."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / 'docs' / 'extending'


@pytest.mark.parametrize('page', ['add-an-architecture', 'add-a-loss', 'add-a-norm'])
def test_code_of_the_page_runs(page, tmp_path):
    blocks = re.findall(r'^```python\n(.*?)^```$', (FOLDER / f'{page}.md').read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    script = tmp_path / 'page.py'
    script.write_text('import torch\ntorch.manual_seed(0)\n' + '\n\n'.join(blocks))
    # a process of its own, since the examples register names
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
