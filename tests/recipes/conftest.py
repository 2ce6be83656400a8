import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parents[1] / 'recipes'
sys.path[:0] = [str(RECIPES), str(HERE)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Synthetic digits are made once for the whole run, away from the user's cache."""
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
