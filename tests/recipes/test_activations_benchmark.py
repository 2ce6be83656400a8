"""Benchmark of the activations."""
import argparse
import importlib.util

import pytest
import torch

from recipes.benchmarks import activations as benchmark


def test_time_and_memory_of_every_way_and_pass(figures, monkeypatch):
    monkeypatch.setattr(benchmark, 'CACHES', {'cpu': 1})
    found = figures(benchmark.main, '--shape', '8', '4', '16', '16', '--rounds', '1', '--activations', 'pssilu')
    for way in ('fused', 'reference', 'formula'):
        assert all(found[f'pssilu, {way}: {which}', '÷ SiLU'] > 0 for which in benchmark.PASSES)
    assert found['silu, torch: forward', '÷ SiLU'] == 1
    # memory is in tensors like the input
    kept, peak = ({row: value for (row, name), value in found.items() if name == column}
                  for column in ('kept', 'most allocated'))
    assert kept['pssilu, fused'] == kept['pssilu, reference'] == 0 and kept['pssilu, formula'] >= 2
    assert peak['pssilu, formula'] > 4
    assert peak['pssilu, fused'] == pytest.approx(2, abs=0.1)  # the value and the gradient
    assert kept['relu, torch'] == 1  # its output


@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='needs Triton')
def test_host_time_is_that_of_the_functions_for_a_gpu(monkeypatch):
    from timm_paf.kernels import gpu
    called, value = [], gpu.value
    monkeypatch.setattr(gpu, 'value', lambda *args: called.append(1) or value(*args))
    args = argparse.Namespace(device='cpu', activations=['pssilu'], rounds=2, until=float('inf'))
    table = benchmark.host_table(args, calls=3)
    figures = {(row, column): values for row, column, _, values in table.figures}
    assert len(figures['pssilu: call', '÷ SiLU']) == 2 and figures['silu: call', '÷ SiLU'] == [1, 1]
    assert len(called) == 3 * 3 * 2  # warm-up and two rounds, of calls without and with a gradient
    assert benchmark.functional.pssilu(torch.ones(3), 1., 0.).tolist() == pytest.approx(3 * [0.731], abs=1e-3)


@pytest.mark.parametrize('which', ['value', 'gradient'])
def test_wrong_results_are_not_timed(monkeypatch, capsys, which):
    right = benchmark.functional.psilu
    wrong = (lambda x, a: right(x.detach(), a) + 0 * x) if which == 'gradient' else (lambda x, a: 1.001 * right(x, a))
    monkeypatch.setattr(benchmark.functional, 'psilu', wrong)
    monkeypatch.setattr(benchmark, 'take_turns', lambda *_: pytest.fail('timed'))
    assert benchmark.main(['--shape', '2', '3', '--activations', 'psilu']) == 2
    assert capsys.readouterr().err.startswith('error: psilu, fused: differs by ')
