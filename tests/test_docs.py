"""The Python code on pages of the documentation runs as it is."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ['extending/add-an-activation.md']


def code_of(page: Path) -> str:
    """The python blocks of a page in order, on their lines, so that a traceback names the line of the page."""
    text = page.read_text()
    lines = [''] * (text.count('\n') + 1)
    for block in re.finditer(r'^```python\n(.*?)^```', text, re.DOTALL | re.MULTILINE):
        start = text[:block.start(1)].count('\n')
        code = block[1].splitlines()
        lines[start:start + len(code)] = code
    return '\n'.join(lines) + '\n'


@pytest.mark.parametrize('page', PAGES)
def test_the_code_of_a_page_runs(page, tmp_path):
    script = tmp_path / f'{Path(page).stem}.py'.replace('-', '_')  # a file, because TorchScript reads sources
    script.write_text(code_of(ROOT / 'docs' / page))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': path})
    assert run.returncode == 0, run.stderr


def test_blocks_keep_their_lines(tmp_path):
    page = tmp_path / 'a.md'
    page.write_text('# A\n\n```python\nx = 1\n```\n\n```bash\nls\n```\n\n```python\nprint(x)\n```\n')
    assert code_of(page).splitlines()[3] == 'x = 1' and code_of(page).splitlines()[11] == 'print(x)'
    assert 'ls' not in code_of(page)
