import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Synthetic digits are made once for the whole run, away from the user's cache."""
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
