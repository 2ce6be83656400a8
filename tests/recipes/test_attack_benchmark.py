"""Comparison of attacks: counts, checks and the floor."""
import pytest
import torch
from torch import nn

from recipes.benchmarks import attack as benchmark


@pytest.fixture
def network():
    """Two classes; the logit of class 1 is the pixel minus a half: an image is robust within its distance to that."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.], [1.]]))
        model[1].bias.copy_(torch.tensor([0., -0.5]))
    x = torch.tensor([0.55, 0.65, 0.9, 0.2]).view(4, 1, 1, 1)
    labels = torch.tensor([1, 1, 1, 1])
    return benchmark.only_correct(benchmark.Network('one pixel', model.eval(), x, labels, ['0.1', '1/5']))


def test_the_floor_is_as_many_passes_on_images_that_rotate(network):
    passes, seen = [], []
    network.model.register_full_backward_pre_hook(lambda *_: passes.append(1))
    benchmark.floor(network.model, network.x, network.y, 0.1, 7)
    assert len(passes) == 7
    network.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten().tolist()))
    table = benchmark.time_table(network, {'ours': benchmark.ours}, 1, images=2, rounds=2)
    first, second = network.x.flatten().tolist()[:2], network.x.flatten()[[2, 0]].tolist()
    assert seen[0] == first and second in seen  # the first ones warm up
    over = {row: values for row, column, _, values in table.figures if column == '÷ floor'}
    assert over['floor'] == [1, 1] and len(over['ours']) == 2


@pytest.mark.parametrize('change, message', [
    (lambda x_adv, x: x, 'PGD raises the loss from'), (lambda x_adv, x: 2 * x_adv - x, 'left the ball'),
], ids=['weak', 'outside'])
def test_wrong_attacks_are_not_timed(network, monkeypatch, change, message, capsys):
    class Wrong(benchmark.PGD):
        def __call__(self, model, x, y, **kwargs):
            return change(super().__call__(model, x, y, **kwargs), x)

    monkeypatch.setattr(benchmark, 'PGD', Wrong)
    monkeypatch.setattr(benchmark, 'peers', dict)
    monkeypatch.setattr(benchmark, 'cifar', lambda device: network)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main(['--subjects', 'cifar', '--eps', '0.1']) == 2
    assert message in capsys.readouterr().err


def test_robust_images_are_counted_and_only_the_first_network_is_timed(figures, monkeypatch, network):
    assert len(network.x) == 3  # the last one is misclassified without an attack
    monkeypatch.setattr(benchmark, 'cifar', lambda device: network)
    monkeypatch.setattr(benchmark, 'digits', lambda device: network._replace(eps=['0.3']))
    found = figures(benchmark.main, '--subjects', 'cifar', 'digits', '--steps', '5', '--rounds', '1')
    for name in ('timm_paf', 'timm_paf, early_stop'):
        assert [found[name, f'eps {eps}'] for eps in ('0.1', '1/5', '0.3')] == [2, 1, 1]
        assert found[name, '÷ floor'] > 0
