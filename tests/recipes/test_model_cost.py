"""The costs of a network against sums by hand."""

import pytest
import torch
from torch import nn

from recipes.benchmarks import model_cost as recipe


@pytest.mark.parametrize('act, maps', [
    (nn.ReLU(inplace=True), 2),  # what the norm reads, and what ReLU leaves in the place of what the norm gives
    (nn.SiLU(), 3),  # what norm, activation and second convolution read
], ids=['in place', 'not in place'])
def test_each_piece_of_memory_is_counted_once_and_weights_are_not(act, maps):
    with torch.device('meta'):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), act, nn.Conv2d(4, 5, 1))
        two, three = (recipe.kept_bytes(model, torch.empty(batch, 3, 8, 8)) for batch in (2, 3))
    assert three - two == 4 * 64 * (3 + 4 * maps)


def test_table_of_one_architecture(monkeypatch, tmp_path):
    table = tmp_path / 'folder' / 'table.md'
    monkeypatch.setattr('sys.argv', ['model_cost.py', '--arch', 'wrn10_2', '--output', str(table)])
    recipe.main()
    row = next(line for line in table.read_text().splitlines() if line.startswith('| `wrn10_2`'))
    multiply_adds = 1024 * (9 * 3 * 16 + 9 * 16 * 32 + 16 * 32 + 9 * 32 * 32)
    multiply_adds += 256 * (9 * 32 * 64 + 32 * 64 + 9 * 64 * 64) + 64 * (9 * 64 * 128 + 64 * 128 + 9 * 128 * 128) + 1280
    assert row.startswith(f'| `wrn10_2` | 3×32×32 | 303,706 | {multiply_adds / 1e9:.3f} G |')
