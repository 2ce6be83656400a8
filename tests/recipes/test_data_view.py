"""What is shown while data are opened."""
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from timm_paf.data import MixedBatches, open_archive

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'


@pytest.fixture
def view(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import timm_paf.engine.announce as _data
    return _data


@pytest.fixture
def deflated(tmp_path):
    np.savez_compressed(
        tmp_path / 'a.npz', image=np.zeros((50, 8, 8, 3), np.uint8), label=np.arange(50) % 10)
    return tmp_path / 'a.npz'


@pytest.mark.parametrize('terminal', [True, False], ids=['terminal', 'file'])
def test_a_bar_while_an_archive_is_unpacked(view, deflated, tmp_path, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with view.reading_bar(console) as progress:
        source = open_archive(
            deflated, num_classes=10, mapped=True, cache_dir=tmp_path / 'cache', progress=progress)
    assert ('unpacking' in out.getvalue()) == terminal
    view.announce(console, MixedBatches(source, [source], batch_size=4, synthetic_fraction=0.5, seed=0))
    shown = ' '.join(out.getvalue().split())
    for kind in ('training images', 'synthetic images'):
        assert f'{kind}: a.npz: 50 images 3x8x8 uint8' in shown
