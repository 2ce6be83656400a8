"""An editable install as users have it: their script lies next to the clone, whose folder has the package's name."""
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ('timm_paf', 'recipes', 'pyproject.toml', 'README.md', 'LICENSE')


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
    """A folder with a clone named timm_paf, installed into an environment next to it."""
    folder = tmp_path_factory.mktemp('parent')
    clone = folder / 'timm_paf'
    clone.mkdir()
    for part in PARTS:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, clone / part)
    venv.create(folder / 'env', with_pip=True)
    run(folder, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '-e', str(clone))
    return folder


def run(folder, *arguments):
    """The output of the environment's Python, which finds the packages that the tests have."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(site.getsitepackages()))
    result = subprocess.run(
        [str(folder / 'env' / ('Scripts' if sys.platform == 'win32' else 'bin') / 'python'), *arguments], cwd=folder,
        env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_script_next_to_the_clone_imports_the_package(parent):
    (parent / 'my_script.py').write_text('import timm_paf\nprint(timm_paf.__file__, timm_paf.shared("pssilu"))\n')
    assert run(parent, 'my_script.py').startswith(str(parent / 'timm_paf' / 'timm_paf' / '__init__.py'))


def test_mypy_sees_the_types_in_a_users_script(parent):
    (parent / 'typed.py').write_text('from timm_paf.engine import TrainConfig\nreveal_type(TrainConfig().epochs)\n')
    python = parent / 'env' / 'bin' / 'python'
    shown = subprocess.run(
        [sys.executable, '-m', 'mypy', '--python-executable', str(python), '--ignore-missing-imports',
         '--follow-imports', 'silent', 'typed.py'], cwd=parent, capture_output=True, text=True)
    assert re.search(r'Revealed type is "(builtins\.)?int"', shown.stdout), shown.stdout + shown.stderr
