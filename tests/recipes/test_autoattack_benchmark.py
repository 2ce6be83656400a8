"""Benchmark of AutoAttack: same results or no time, and its figures."""
import numpy as np
import pytest
import timm
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


def test_rounds_take_the_next_images_and_compare_with_the_package(figures, capsys):
    found = figures(benchmark.main, *FAST, '--rounds', '2')
    # two of the first three images are robust, one of the next three
    assert '2 rounds of 3 images, linf 0.3 (pixels), 3 robust, 0 results differ' in capsys.readouterr().out
    assert found['time', 'here ÷ package'] > 0 and found['time', 'package'] > 0


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


def test_the_package_is_stopped_at_the_end_of_the_time(figures, monkeypatch, capsys):
    def package(model, x, *_):
        model.until = 0.
        return model(x)

    monkeypatch.setattr(benchmark, 'SIDES', {'here': lambda *_: torch.ones(3, dtype=torch.bool), 'package': package})
    found = figures(benchmark.main, *FAST, '--rounds', '3')
    assert '1 rounds of 3 images' in capsys.readouterr().out
    assert found['time', 'here ÷ package, at most'] == found['time', 'here'] / found['time', 'package']
    assert ('time', 'here ÷ package') not in found and ('results that differ', 'images') not in found


def test_a_checkpoint_with_an_archive(tmp_path):
    model = timm.create_model('wrn10_2_relu', num_classes=3)
    settings = {'model': 'wrn10_2_relu', 'eps': '1/255'}
    torch.save({'state_dict': model.state_dict(), 'args': settings}, tmp_path / 'a.pth.tar')
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    np.savez(tmp_path / 'test.npz', image=images, label=np.arange(7) % 3)
    network = benchmark.archive('cpu', tmp_path / 'a.pth.tar', tmp_path / 'test.npz')
    torch.testing.assert_close(network.x[2, :, 1, 3], torch.from_numpy(images[2, 1, 3]) / 255)
    assert network.y.tolist() == [0, 1, 2, 0, 1, 2, 0] and network.eps == ['1/255']
    torch.testing.assert_close(network.model(network.x), model.eval()(network.x))


@pytest.mark.parametrize('source', [['--trained', 'wrn10_2_relu'], ['--network']], ids=' '.join)
def test_an_archive_belongs_to_a_checkpoint(source, capsys):
    assert benchmark.main([*source, '--archive', 'test.npz']) == 2
    assert capsys.readouterr().err == 'error: --archive test.npz: it belongs to --checkpoint.\n'


def test_a_model_that_is_trained_first(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, 'SIDES', dict.fromkeys(benchmark.SIDES, lambda *_: torch.ones(2, dtype=torch.bool)))
    assert benchmark.main(['--trained', 'wrn10_2_relu', '--epochs', '0', '--n-examples', '2']) == 0
    assert '2 images, linf 0.2 (wrn10_2_relu, digits, robust), 2 robust' in capsys.readouterr().out
