"""The benchmark of the training step and the short run: what they refuse to time, and what their figures say."""
import json

import pytest
import torch

from recipes.benchmarks import short_run
from recipes.benchmarks import train_step as benchmark

TINY = ['--batch-size', '4', '--updates', '1', '--rounds', '2']


def figures(path):
    return {measure['name']: measure for measure in json.loads(path.read_text())['measures']}


def test_every_model_and_way(tmp_path, capsys):
    assert benchmark.main([
        *TINY, '--models', 'wrn10_2_relu', 'wrn10_2_pssilu', '--precisions', 'bf16', '--ways', 'eager', 'compiled',
        '--backend', 'eager', '--no-passes', '--channels-last', '--image-size', '8', '--json', str(tmp_path / 'a.json'),
        '--output', str(tmp_path / 'a.md')]) == 0
    found = figures(tmp_path / 'a.json')
    for way in ('eager', 'compiled'):
        label = f'wrn10_2_pssilu, bf16, {way}'
        for what in ('images/s', 'share of the roofline', 'over the plain loop in fp32', 'over wrn10_2_relu'):
            assert found[f'{label}: {what}']['value'] > 0 and found[f'{label}: {what}']['rounds'] == 2
    assert {'matrix product, fp32', 'matrix product, bf16', 'copy'} <= found.keys()
    kept = [found[f'{name}: kept for the backward pass']['value'] for name in (
        'wrn10_2_relu', 'wrn10_2_pssilu', 'wrn10_2_pssilu, BatchNorm computed anew') if f'{name}: kept for the '
        'backward pass' in found]
    assert kept[0] < kept[1] and (len(kept) == 2 or kept[2] < kept[1])
    table = (tmp_path / 'a.md').read_text()
    assert table == capsys.readouterr().out and '`wrn10_2_relu` | bf16 | compiled' in table
    assert '`python recipes/benchmarks/train_step.py --batch-size 4 --updates 1' in table


def test_the_passes_are_those_of_the_precision(tmp_path):
    assert benchmark.main([*TINY, '--precisions', 'bf16', '--json', str(tmp_path / 'a.json')]) == 0
    found = figures(tmp_path / 'a.json')
    assert 'wrn10_2_pssilu, bf16, eager: overhead over the passes' in found
    job = benchmark.job_of('wrn10_2_pssilu', 4, 'cpu', benchmark.flags_of('bf16', 'eager', 'inductor'))
    batch, seen = next(benchmark.endless(job)), []
    job.task.trainable_module.conv1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    benchmark.passes_of(job, [batch])()
    assert seen == 12 * [torch.bfloat16]


@pytest.mark.parametrize('part', ['attack', 'loss'])
def test_other_updates_are_not_timed(monkeypatch, capsys, part):
    original = benchmark.job_of

    def other(*args, **kwargs):
        job = original(*args, **kwargs)
        if part == 'attack':
            job.task.attack.steps = 2
        else:
            job.task.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.3)
        return job

    monkeypatch.setattr(benchmark, 'job_of', other)
    monkeypatch.setattr(benchmark, 'seconds', lambda *_: pytest.fail('timed'))
    assert benchmark.main(TINY) == 2
    assert capsys.readouterr().err.startswith('error: wrn10_2_pssilu, fp32, eager: differs from the plain loop by ')


@pytest.mark.parametrize('script, arguments, message', [
    (benchmark, ['--precisions', 'tf32'], 'tf32 is of GPUs'), (benchmark, ['--rounds', '0'], 'of 1 or more'),
    (benchmark, ['--models', 'wrn10_2_nothing'], 'wrn10_2_nothing'), (benchmark, ['--nothing'], '--nothing'),
    (short_run, ['--lr', '0.5'], '--lr: the two runs have to be equal'), (short_run, ['--nothing'], '--nothing'),
], ids=['tf32', 'rounds', 'model', 'flag', 'unequal', 'flag of the run'])
def test_mistakes_are_one_line(script, arguments, message, capsys):
    short = ['--updates-per-epoch', '1', '--epochs', '1'] if script is short_run else TINY
    assert script.main([*short, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1


def test_a_short_run_counts_the_same_images_of_both(tmp_path, capsys):
    path = tmp_path / 'a.json'
    assert short_run.main([
        '--updates-per-epoch', '1', '--epochs', '1', '--batch-size', '8', '--seeds', '0', '1', '--channels-last',
        '--json', str(path)]) == 0
    found = figures(path)
    assert found['recipe: robust accuracy']['rounds'] == found['plain loop: robust accuracy']['rounds'] == 2
    assert 'of 360 stand' in capsys.readouterr().out and found['noise of it']['value'] >= 0


def test_the_noise_is_two_standard_errors_of_the_difference():
    # no difference between seeds: 100 images, half of them standing, on either side
    assert short_run.noise({'recipe': [50, 50], 'plain loop': [50, 50]}, 100) == pytest.approx(
        200 * (2 * 0.25 / 100) ** 0.5)
    # all or no images: what is left is the seeds', 2 points apart on one side
    seeds = short_run.noise({'recipe': [98, 100], 'plain loop': [100, 100]}, 100)
    assert seeds == pytest.approx(200 * (2e-4 / 2 + 0.99 * 0.01 / 100) ** 0.5)
