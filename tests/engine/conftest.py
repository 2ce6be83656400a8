import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def refused(tmp_path, capsys):
    """Checks that a command has ended with status 2 and one line, and has written nothing."""
    def check(status, message):
        error = capsys.readouterr().err
        assert status == 2 and message in error and error.startswith('error: ') and error.count('\n') == 1
        assert list(tmp_path.iterdir()) == []
    return check


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Synthetic digits are made once for the whole run, outside the user's cache."""
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
