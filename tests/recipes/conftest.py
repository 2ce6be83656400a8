import json

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Synthetic digits are made once for the whole run, away from the user's cache."""
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))


@pytest.fixture
def figures(tmp_path):
    """A function that runs a benchmark to its end and returns its medians, by row and column."""
    def run(main, *argv):
        path = tmp_path / 'figures.json'
        assert main(['--json', str(path), *argv]) == 0
        (written,) = json.loads(path.read_text())['runs']
        return {(figure['row'], figure['column']): figure['median'] for figure in written['figures']}

    return run
