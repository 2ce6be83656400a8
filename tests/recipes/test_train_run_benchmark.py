"""Benchmark of a run of adv_train.py: its figures, also of a run that is stopped."""
import pytest

from recipes.benchmarks import train_run as benchmark

FLAGS = ['--', '--model', 'wrn10_2_pssilu', '--updates-per-epoch', '2', '--epochs', '2', '--attack-steps', '1',
         '--batch-size', '4', '--autoattack', 'none', '--n-pgd', '4', '--pgd-steps', '1', '--num-synthetic', '100']
FIRST = {'start to first update'}
ALL = {*FIRST, 'speed', 'under attack', 'alpha', 'beta', 'share of the bf16 peak', 'clean', 'pgd'}


@pytest.mark.parametrize('limit, columns', [('inf', ALL), ('0', FIRST)], ids=['whole', 'stopped'])
def test_figures_of_a_run(tmp_path, figures, limit, columns):
    measured = figures(benchmark.main, '--limit', limit, *FLAGS, '--output', str(tmp_path))
    found = {column: value for (_, column), value in measured.items()}
    assert columns <= set(found) and ('speed' in found) == (columns == ALL)
    assert all(row == 'wrn10_2_pssilu, batch 4' for row, _ in measured)
    assert found['start to first update'] > 0.5 and (columns == FIRST or abs(found['alpha'] - 1) < 0.5)
