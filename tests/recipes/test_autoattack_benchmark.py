"""Benchmark of AutoAttack: same results or no time, and its figures."""
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
    monkeypatch.setattr(benchmark, 'cifar', lambda device: ('pixels', model, x, torch.full((5,), 3), ['0.3']))


def test_rounds_take_the_next_images_and_compare_with_the_package(tmp_path, capsys):
    path = tmp_path / 'a.json'
    assert benchmark.main([*FAST, '--rounds', '2', '--json', str(path)]) == 0
    # two of the first three images are robust, one of the next three
    assert '2 rounds of 3 images, linf 0.3 (pixels), 3 robust, 0 results differ' in capsys.readouterr().out
    figures = {f['column']: f for f in json.loads(path.read_text())['figures']}
    assert figures['here ÷ package']['rounds'] == 2 and figures['package']['median'] > 0


@pytest.mark.parametrize('allowed, status', [('0', 2), ('1', 0)])
def test_other_verdicts_are_an_error(monkeypatch, capsys, allowed, status):
    verdict = torch.tensor([True, False, False])
    monkeypatch.setattr(benchmark, 'SIDES', {'here': lambda *_: verdict, 'package': lambda *_: verdict & False})
    assert benchmark.main([*FAST, '--differing', allowed]) == status
    printed = capsys.readouterr()
    if status:
        assert printed.err.startswith('error: the results for images [0] differ') and printed.out == ''
    else:
        assert '1 results differ' in printed.out


def test_a_model_that_is_trained_first(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, 'SIDES', dict.fromkeys(benchmark.SIDES, lambda *_: torch.ones(2, dtype=torch.bool)))
    assert benchmark.main(['--trained', 'wrn10_2_relu', '--epochs', '0', '--n-examples', '2']) == 0
    assert '2 images, linf 0.2 (wrn10_2_relu, digits, robust), 2 robust' in capsys.readouterr().out
