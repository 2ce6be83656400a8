"""Benchmark of the training update: what it refuses to time, and its figures."""
import argparse
import json

import pytest
import torch

from recipes.benchmarks import train_step as benchmark

TINY = ['--batch-size', '2', '--updates', '1', '--rounds', '1']


def test_every_model_and_way(tmp_path):
    path = tmp_path / 'a.json'
    assert benchmark.main([
        *TINY, '--models', 'wrn10_2_relu', 'wrn10_2_pssilu', '--precisions', 'bf16', '--channels-last',
        '--image-size', '8', '--json', str(path)]) == 0
    found = {(f['row'], f['column']) for f in json.loads(path.read_text())['figures']}
    assert {('wrn10_2_pssilu, bf16, eager', column) for column in (
        'speed', '÷ plain loop', '÷ wrn10_2_relu', 'over the passes')} <= found


def test_the_bare_passes_are_those_of_an_update_in_its_precision():
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    model[1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with benchmark.autocast(argparse.Namespace(device='cpu'), 'bf16'):
        benchmark.bare_passes(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert seen == 12 * [torch.bfloat16] and model[1].weight.requires_grad


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
