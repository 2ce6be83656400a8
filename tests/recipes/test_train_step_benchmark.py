"""Benchmark of the training update: what it refuses to time, and its figures."""
import pytest
import torch

from recipes.benchmarks import train_step as benchmark
from recipes.benchmarks._networks import update_flops

TINY = ['--batch-size', '2', '--updates', '1', '--rounds', '1']


def test_every_model_and_way(figures):
    found = figures(
        benchmark.main, *TINY, '--models', 'wrn10_2_relu', 'wrn10_2_pssilu', '--precision', 'bf16', '--channels-last',
        '--ways', 'captured', '--image-size', '8')
    assert {('wrn10_2_pssilu, captured', column) for column in ('÷ plain loop', '÷ wrn10_2_relu')} <= set(found)
    flops = update_flops('wrn10_2_pssilu', torch.empty(1, 3, 8, 8), 10)
    assert found['wrn10_2_pssilu, captured', 'share of the bf16 peak'] == pytest.approx(
        flops * found['wrn10_2_pssilu, captured', 'speed'] / found['largest products', 'rate'] / 1e10)


def test_operations_of_an_update(monkeypatch):
    monkeypatch.setattr('timm.create_model', lambda name, device, **_: torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 10)).to(device))
    convolution, product = 2 * 27 * 4 * 64, 2 * 256 * 10
    forward = convolution + product
    # gradients of the images cost what the forward pass costs; learning needs no gradient of the images
    expected = 7 * 2 * forward + forward + convolution + 2 * product
    assert update_flops('a model of this test', torch.empty(5, 3, 8, 8), 7) == expected


@pytest.mark.parametrize('part', ['attack', 'loss'])
def test_other_updates_are_not_timed(monkeypatch, capsys, part):
    original = benchmark.make_trainer

    def other(*args, **kwargs):
        trainer = original(*args, **kwargs)
        if part == 'attack':
            trainer.task.attack.steps = 2
        else:
            trainer.task.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.3)
        return trainer

    monkeypatch.setattr(benchmark, 'make_trainer', other)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main(TINY) == 2
    assert capsys.readouterr().err.startswith('error: wrn10_2_pssilu, fp32: differs from the plain loop by ')
