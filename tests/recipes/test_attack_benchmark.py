"""Comparison of attacks: counts, checks and the floor."""
import json

import pytest
import torch
from torch import nn

from recipes.benchmarks import attack as benchmark
from recipes.benchmarks.attack import processor_time_added


@pytest.fixture(autouse=True)
def no_processor_time(monkeypatch):  # its radii are for images of more than one pixel
    monkeypatch.setattr(benchmark, 'processor_time_added', lambda *_: 0.01)


@pytest.fixture
def subject():
    """Two classes; the logit of class 1 is the pixel minus a half: an image is robust within its distance to that."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.], [1.]]))
        model[1].bias.copy_(torch.tensor([0., -0.5]))
    x = torch.tensor([0.55, 0.65, 0.9, 0.2]).view(4, 1, 1, 1)
    labels = torch.tensor([1, 1, 1, 1])
    return benchmark.only_correct(benchmark.Subject('one pixel', model.eval(), x, labels, ['0.1', '1/5']))


@pytest.mark.parametrize('name', ['ours', 'early_stop'])
def test_robust_images_are_counted(subject, name):
    assert len(subject.x) == 3  # the last one is misclassified without an attack
    assert [benchmark.robust(subject, getattr(benchmark, name), eps, 5) for eps in subject.eps] == [2, 1]


def test_the_floor_is_as_many_passes_on_images_that_rotate(subject):
    passes, seen = [], []
    subject.model.register_full_backward_pre_hook(lambda *_: passes.append(1))
    benchmark.floor(subject.model, subject.x, subject.y, 0.1, 7)
    assert len(passes) == 7
    subject.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten().tolist()))
    table = benchmark.time_table(subject, {'ours': benchmark.ours}, 1, images=2, rounds=2)
    first, second = subject.x.flatten().tolist()[:2], subject.x.flatten()[[2, 0]].tolist()
    assert seen[0] == first and second in seen  # the first ones warm up
    over = {f.row: f.values for f in table.figures if f.column == '÷ floor'}
    assert over['floor'] == [1, 1] and len(over['ours']) == 2


@pytest.mark.parametrize('change, message', [
    (lambda x_adv, x: x, 'PGD raises the loss from'), (lambda x_adv, x: 2 * x_adv - x, 'left the ball'),
], ids=['weak', 'outside'])
def test_wrong_attacks_are_not_timed(subject, monkeypatch, change, message, capsys):
    class Wrong(benchmark.PGD):
        def __call__(self, model, x, y, **kwargs):
            return change(super().__call__(model, x, y, **kwargs), x)

    monkeypatch.setattr(benchmark, 'PGD', Wrong)
    monkeypatch.setattr(benchmark, 'peers', dict)
    monkeypatch.setattr(benchmark, 'cifar', lambda device: subject)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main(['--subjects', 'cifar', '--eps', '0.1']) == 2
    assert message in capsys.readouterr().err


def test_tables_of_networks(tmp_path, monkeypatch, subject):
    monkeypatch.setattr(benchmark, 'cifar', lambda device: subject)
    path = tmp_path / 'a.json'
    assert benchmark.main([
        '--subjects', 'cifar', 'model', '--model', 'wrn10_2_relu', '--steps', '1', '--rounds', '1', '--json',
        str(path)]) == 0
    found = {(f['row'], f['column']): f['median'] for f in json.loads(path.read_text())['figures']}
    assert found['timm_paf', '÷ floor'] > 0 and found['timm_paf', 'eps 0.1'] <= 3


def test_processor_time_that_the_loop_adds():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    subject = benchmark.Subject('convolution', model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), ['0.1'])
    with torch.no_grad():
        model(subject.x)
    assert 0 < processor_time_added(subject, 'l2', 0.5, 2, 2) < 5
