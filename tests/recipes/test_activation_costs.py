"""The benchmark of the activations: what it refuses to time, and what its columns say."""
import pytest
import torch

from recipes.benchmarks import activations as benchmark

TINY = ['--shape', '2', '3', '4', '4', '--rounds', '2']


def test_a_table_of_every_way(tmp_path, capsys):
    output = tmp_path / 'folder' / 'table.md'
    assert benchmark.main([*TINY, '--activations', 'psilu', 'prelu0', '--output', str(output)]) == 0
    rows = [line.split(' | ') for line in output.read_text().splitlines() if line.startswith('| ')]
    assert [row[0].strip('| ') + ' ' + row[1] for row in rows[2:]] == [
        'relu torch', 'silu torch', 'psilu fused', 'psilu reference', 'psilu formula', 'prelu0 fused',
        'prelu0 reference', 'prelu0 formula']
    assert all(len(row) == len(benchmark.HEADER) for row in rows)
    assert rows[3][3] == rows[3][6] == rows[3][9] == '1.00 (1.00)'  # SiLU against itself
    assert 'psilu' in capsys.readouterr().out


@pytest.mark.parametrize('which', ['value', 'gradient'])
def test_wrong_results_are_not_timed(monkeypatch, capsys, which):
    right = benchmark.functional.psilu
    x_only = (lambda x, a: right(x.detach(), a) + 0 * x) if which == 'gradient' else (lambda x, a: 1.001 * right(x, a))
    monkeypatch.setattr(benchmark.functional, 'psilu', x_only)
    monkeypatch.setattr(benchmark, 'seconds', lambda *_: pytest.fail('timed'))
    assert benchmark.main([*TINY, '--activations', 'psilu']) == 2
    assert capsys.readouterr().err.startswith('error: psilu, fused: differs by ')


@pytest.mark.parametrize('arguments, message', [
    (['--rounds', '1'], 'expected --rounds of 2 or more'), (['--shape', '0'], 'a shape of positive numbers'),
    (['--shape', '8', '--channels-last'], 'shapes of four numbers'), (['--device', 'nowhere'], 'nowhere'),
], ids=['rounds', 'shape', 'layout', 'device'])
def test_mistakes_are_one_line(arguments, message, capsys):
    assert benchmark.main([*TINY, '--activations', 'psilu', *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_memory_is_counted_in_tensors_like_the_input():
    x = torch.randn(8, 4, 16, 16, requires_grad=True)
    used = {way.way: benchmark.memory(way, x, torch.randn_like(x))
            for way in benchmark.ways(['pssilu'], x.device) if way.name == 'pssilu'}
    assert used['fused'][0] == used['reference'][0] == 0 < 2 <= used['formula'][0]
    assert used['fused'][1] == pytest.approx(2, abs=0.1)  # the value and the gradient
    assert used['formula'][1] > 4
    relu = benchmark.memory(benchmark.Way('relu', 'torch', torch.relu), x, torch.randn_like(x))
    assert relu[0] == 1  # its output


def test_the_ratio_is_that_within_a_round():
    assert benchmark.ratio([1., 20., 3.], [1., 10., 1.]) == 2
    assert benchmark.spread([1., 2., 3., 4.]) == '2.50 ± 1.25'
