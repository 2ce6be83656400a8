"""Benchmark of the activations."""
import json

import pytest

from recipes.benchmarks import activations as benchmark


def test_time_and_memory_of_every_way_and_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'CACHES', {'cpu': 1})
    path = tmp_path / 'a.json'
    assert benchmark.main([
        '--shape', '8', '4', '16', '16', '--rounds', '1', '--activations', 'pssilu', '--json', str(path)]) == 0
    found = {(f['row'], f['column']): f['median'] for f in json.loads(path.read_text())['figures']}
    for way in ('fused', 'reference', 'formula'):
        assert all(found[f'pssilu, {way}: {which}', '÷ SiLU'] > 0 for which in benchmark.PASSES)
    assert found['silu, torch: forward', '÷ SiLU'] == 1
    # memory is in tensors like the input
    kept, peak = ({row.split(':')[0]: value for (row, name), value in found.items() if name == column}
                  for column in ('kept', 'most allocated'))
    assert kept['pssilu, fused'] == kept['pssilu, reference'] == 0 and kept['pssilu, formula'] >= 2
    assert peak['pssilu, formula'] > 4
    assert peak['pssilu, fused'] == pytest.approx(2, abs=0.1)  # the value and the gradient
    assert kept['relu, torch'] == 1  # its output


@pytest.mark.parametrize('which', ['value', 'gradient'])
def test_wrong_results_are_not_timed(monkeypatch, capsys, which):
    right = benchmark.functional.psilu
    wrong = (lambda x, a: right(x.detach(), a) + 0 * x) if which == 'gradient' else (lambda x, a: 1.001 * right(x, a))
    monkeypatch.setattr(benchmark.functional, 'psilu', wrong)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main(['--shape', '2', '3', '--activations', 'psilu']) == 2
    assert capsys.readouterr().err.startswith('error: psilu, fused: differs by ')
