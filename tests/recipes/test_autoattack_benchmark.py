"""The benchmark of AutoAttack: the same verdicts or no time, and what its figures say."""
import json

import pytest
import torch
from torch import nn

from recipes.benchmarks import autoattack as benchmark

FAST = ['--network', '--attacks', 'apgd-ce', '--n-examples', '3', '--batch-size', '2', '--eps', '0.3']


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The label is the largest of ten pixels, which are far apart in two images of five."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(10))
        model[1].bias.zero_()
    x = torch.full((5, 1, 2, 5), 0.1)
    x.view(5, 10)[:, 3] = torch.tensor([0.9, 0.5, 0.9, 0.4, 0.3])
    monkeypatch.setattr(benchmark, 'shipped_network', lambda: (model, x, torch.full((5,), 3)))


def figures(path):
    return {measure['name']: measure for measure in json.loads(path.read_text())['measures']}


def test_rounds_take_the_next_images_and_count_passes(tmp_path, capsys):
    path = tmp_path / 'a.json'
    assert benchmark.main([*FAST, '--rounds', '2', '--json', str(path)]) == 0
    found, printed = figures(path), capsys.readouterr().out
    assert '2 rounds of 3 images, linf 0.3, 3 standing, 0 verdicts differ' in printed
    assert found['images standing']['value'] == pytest.approx(50)  # two of the first three, one of the next
    assert found['all: here over package']['rounds'] == 2 and found['all: here over package']['value'] > 0
    assert 0 < found['backward passes: here over package']['value'] < 1  # fooled images leave
    assert found['package: share of the roofline']['value'] > 0
    assert '| apgd-ce |' in printed and '| 3 |' in printed  # images broken in both rounds


@pytest.mark.parametrize('allowed, status', [('0', 2), ('1', 0)])
def test_other_verdicts_are_an_error(monkeypatch, capsys, allowed, status):
    right = benchmark.here

    def wrong(*args):
        result = right(*args)
        result['robust'][0] ^= True
        return result

    monkeypatch.setattr(benchmark, 'here', wrong)
    assert benchmark.main([*FAST, '--differing', allowed]) == status
    printed = capsys.readouterr()
    if status:
        assert printed.err.startswith('error: the verdicts on images [0] differ') and printed.out == ''
    else:
        assert '1 verdicts differ' in printed.out


@pytest.mark.parametrize('arguments, message', [
    ([*FAST, '--amp'], 'unrecognized arguments: --amp'), ([*FAST, '--rounds', '0'], 'of 1 or more'),
    (['--trained', 'wrn10_2_nothing'], 'wrn10_2_nothing'), ([*FAST, '--eps', '8'], 'eps'),
], ids=['flag', 'rounds', 'model', 'radius'])
def test_mistakes_are_one_line(arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1


def test_a_model_that_is_trained_first(tmp_path):
    assert benchmark.main([
        '--trained', 'wrn10_2_relu', '--epochs', '1', '--updates-per-epoch', '1', '--image-size', '8', '--attacks',
        'apgd-ce', '--n-examples', '2', '--eps', '0.01', '--json', str(tmp_path / 'a.json')]) == 0
    assert 'images standing' in figures(tmp_path / 'a.json')
