"""Benchmark of the activations."""
import json

import pytest

from recipes.benchmarks import activations as benchmark

TINY = ['--shape', '2', '3', '4', '4', '--rounds', '2']


def figures(path):
    return {(f['row'], f['column']): f for f in json.loads(path.read_text())['figures']}


def test_every_way_and_pass_is_measured(tmp_path):
    path = tmp_path / 'a.json'
    assert benchmark.main([*TINY, '--activations', 'pssilu', 'prelu0', '--json', str(path)]) == 0
    found = figures(path)
    for name in ('pssilu', 'prelu0'):
        for way in ('fused', 'reference', 'formula'):
            for which in benchmark.PASSES:
                assert found[f'{name}, {way}: {which}', '÷ SiLU']['rounds'] == 2
    assert found['silu, torch: forward', '÷ SiLU']['median'] == 1


def test_memory_is_in_tensors_like_the_input(tmp_path):
    path = tmp_path / 'a.json'
    assert benchmark.main([
        '--shape', '8', '4', '16', '16', '--rounds', '1', '--activations', 'pssilu', '--json', str(path)]) == 0
    used = {(row.split(':')[0], column): f['median'] for (row, column), f in figures(path).items()
            if column in ('kept', 'most allocated')}
    assert used['pssilu, fused', 'kept'] == used['pssilu, reference', 'kept'] == 0
    assert used['pssilu, formula', 'kept'] >= 2 and used['pssilu, formula', 'most allocated'] > 4
    assert used['pssilu, fused', 'most allocated'] == pytest.approx(2, abs=0.1)  # the value and the gradient
    assert used['relu, torch', 'kept'] == 1  # its output


@pytest.mark.parametrize('which', ['value', 'gradient'])
def test_wrong_results_are_not_timed(monkeypatch, capsys, which):
    right = benchmark.functional.psilu
    wrong = (lambda x, a: right(x.detach(), a) + 0 * x) if which == 'gradient' else (lambda x, a: 1.001 * right(x, a))
    monkeypatch.setattr(benchmark.functional, 'psilu', wrong)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main([*TINY, '--activations', 'psilu']) == 2
    assert capsys.readouterr().err.startswith('error: psilu, fused: differs by ')


@pytest.mark.parametrize('arguments', [['--shape', '0'], ['--shape', '8', '--channels-last']], ids=str)
def test_wrong_shapes_are_one_line(arguments, capsys):
    assert benchmark.main([*TINY, '--activations', 'psilu', *arguments]) == 2
    error = capsys.readouterr().err
    assert '--shape' in error and error.count('\n') == 1
