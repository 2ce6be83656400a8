"""Benchmark of AutoAttack: same verdicts or no time, and its figures."""
import json

import pytest
import torch
from torch import nn

from recipes.benchmarks import autoattack as benchmark

FAST = ['--network', '--attacks', 'apgd-ce', '--n-examples', '3', '--batch-size', '2', '--eps', '0.3']


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The label is the largest of ten pixels, which is much larger than the others in two images of five."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(10))
        model[1].bias.zero_()
    x = torch.full((5, 1, 2, 5), 0.1)
    x.view(5, 10)[:, 3] = torch.tensor([0.9, 0.5, 0.9, 0.4, 0.3])
    monkeypatch.setattr(benchmark, 'cifar', lambda device: benchmark.Subject(
        'pixels', model, x, torch.full((5,), 3), ['0.3']))


def figures(path):
    return {(f['row'], f['column']): f for f in json.loads(path.read_text())['figures']}


def test_rounds_take_the_next_images_and_count_passes(tmp_path, capsys):
    path = tmp_path / 'a.json'
    assert benchmark.main([*FAST, '--rounds', '2', '--json', str(path)]) == 0
    found = figures(path)
    # two of the first three images are robust, one of the next three
    assert '2 rounds of 3 images, linf 0.3 (pixels), 3 robust, 0 verdicts differ' in capsys.readouterr().out
    assert found['all, s', 'here ÷ package']['rounds'] == 2
    assert 0 < found['backward passes, images', 'here ÷ package']['median'] < 1  # fooled images leave
    assert found['apgd-ce, s', 'images broken']['median'] == 3


@pytest.mark.parametrize('allowed, status', [('0', 2), ('1', 0)])
def test_other_verdicts_are_an_error(monkeypatch, capsys, allowed, status):
    def wrong(*args):
        outcome = benchmark.here(*args)
        outcome.robust[0] ^= True
        return outcome

    monkeypatch.setitem(benchmark.SIDES, 'here', wrong)
    assert benchmark.main([*FAST, '--differing', allowed]) == status
    printed = capsys.readouterr()
    if status:
        assert printed.err.startswith('error: the verdicts on images [0] differ') and printed.out == ''
    else:
        assert '1 verdicts differ' in printed.out


@pytest.mark.parametrize('arguments, message', [
    ([*FAST, '--n-examples', '0'], '--n-examples'), (['--trained', 'wrn10_2_nothing'], 'wrn10_2_nothing'),
    ([*FAST, '--eps', '8'], 'eps'),
], ids=['images', 'model', 'radius'])
def test_mistakes_are_one_line(arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1


def test_a_model_that_is_trained_first(tmp_path):
    assert benchmark.main([
        '--trained', 'wrn10_2_relu', '--epochs', '0', '--attacks', 'apgd-ce', '--n-examples', '2', '--eps', '0.01',
        '--json', str(tmp_path / 'a.json')]) == 0
    assert ('all, s', 'package') in figures(tmp_path / 'a.json')
