import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
sys.path.insert(0, str(RECIPES))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Synthetic digits are made once for the whole run, away from the user's cache."""
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
