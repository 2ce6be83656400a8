"""Parts that the benchmarks share: clock, memory, tables, command line; and the plain loop."""
import json

import _plain_loop
import _timing
import pytest
import timm
import torch
from torch import nn

from timm_paf.activations import ACTIVATIONS, functional

CPU = torch.device('cpu')


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    calls = []
    times = _timing.take_turns({name: lambda number, name=name: calls.append((name, number)) for name in 'ab'}, 2)
    assert calls == [('a', 0), ('b', 0), ('a', 0), ('b', 0), ('b', 1), ('a', 1)]
    assert {name: len(values) for name, values in times.items()} == {'a': 2, 'b': 2}
    late = _timing.take_turns({'a': lambda number: None}, 5, until=0.)
    assert len(late['a']) == 1  # one round is always timed


def test_a_ratio_is_within_a_round_and_a_cell_has_median_and_range():
    table = _timing.Table('title:')
    table.add('a', 'speed', [1234., 2.5, 10.], 'images/s')
    table.add('a', '÷ b', _timing.ratios([1., 20., 3.], [1., 10., 1.]))
    table.add('b', 'speed', [3.], 'images/s')
    assert table.markdown().splitlines() == [
        'title:', '', '| | speed, images/s | ÷ b |', '| --- | ---: | ---: |',
        '| a | 10 (2.5 … 1,234) | 2 (1 … 3) |', '| b | 3 |  |']


def test_a_run_writes_figures_with_command_and_versions(tmp_path, capsys):
    def measure(args):
        table = _timing.Table('title')
        table.add('a', 'time', [9.], 's')
        yield table
        assert written()[-1]['figures'][0]['median'] == 9
        table.add('a', 'time', [4., 1., 2.], 's')
        yield table

    def written():
        return json.loads((tmp_path / 'a.json').read_text())['runs']
    parser = _timing.new_parser('somewhere/x.py', 'A benchmark.', rounds=3)
    paths = ['--output', str(tmp_path / 'folder' / 'a.md'), '--json', str(tmp_path / 'a.json')]
    assert _timing.run(parser, measure, [*paths, '--rounds', '4']) == 0
    (run,) = written()
    assert run['command'].startswith('python recipes/benchmarks/x.py --output ')
    assert run['versions']['timm'] == timm.__version__ and run['device'].startswith('CPU')
    assert run['figures'] == [
        {'row': 'a', 'column': 'time', 'unit': 's', 'median': 2, 'low': 1, 'high': 4, 'rounds': 3}]
    assert (tmp_path / 'folder' / 'a.md').read_text() == capsys.readouterr().out

    def failing(args):
        yield _timing.Table('title', [('b', 'time', 's', [3.])])
        raise ValueError('no more')
    assert _timing.run(parser, failing, paths) == 2
    assert written()[0] == run and written()[1]['figures'][0]['median'] == 3  # what was measured is kept


@pytest.mark.parametrize('arguments', [['--device', 'nowhere'], ['--rounds', '0']], ids=' '.join)
def test_mistakes_are_one_line(arguments, capsys):
    parser = _timing.new_parser('somewhere/x.py', 'A benchmark.', rounds=3)
    assert _timing.run(parser, lambda args: pytest.fail('measured'), arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {" ".join(arguments)}') and error.count('\n') == 1


# maps: the input of the norm, and the result of ReLU in the place of the norm's output; or the inputs of all three
@pytest.mark.parametrize('act, maps', [(nn.ReLU(inplace=True), 2), (nn.SiLU(), 3)], ids=['in place', 'not in place'])
def test_kept_memory_counts_once_and_without_weights(act, maps):
    with torch.device('meta'):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), act, nn.Conv2d(4, 5, 1))
        own = [*model.parameters(), *model.buffers()]
        two, three = (_timing.kept_bytes(lambda n=n: model(torch.empty(n, 3, 8, 8)), own) for n in (2, 3))
    assert three - two == 4 * 64 * (3 + 4 * maps)


def test_peak_memory_is_that_at_one_time():
    x = torch.ones(100_000)
    assert _timing.peak_bytes(lambda: (x + 1).sum() + (x + 2).sum(), CPU) == pytest.approx(x.nbytes, rel=0.01)
    assert _timing.peak_bytes(lambda: [x + 1, x + 2], CPU) == pytest.approx(2 * x.nbytes, rel=0.01)


@pytest.mark.gpu
def test_time_and_memory_on_a_gpu():
    x = torch.randn(2048, 2048, device='cuda')
    x @ x  # warms up
    once, often = (_timing.seconds(lambda n=n: [x @ x for _ in range(n)]) for n in (20, 200))
    assert 3 < often / once < 30  # waits for what is queued
    assert _timing.peak_bytes(lambda: x + 1, torch.device('cuda')) == x.nbytes


@pytest.mark.usefixtures('reference')
@pytest.mark.parametrize('name', list(ACTIVATIONS))
def test_formulas_of_the_plain_loop_are_those_of_the_activations(name):
    formula, values = _plain_loop.FORMULAS[name]
    parameters = [torch.tensor([value], dtype=torch.float64) for value in values]
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(formula(x, *parameters), getattr(functional, name)(x, *parameters), atol=1e-12, rtol=0)
