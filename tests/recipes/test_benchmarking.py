"""What the benchmarks share: commands as they are written down, work counted by hand, the plain loop."""
import importlib
import json

import _benchmarking
import _plain_loop
import _roofline
import pytest
import timm
import torch
from torch import nn

import timm_paf
from timm_paf.activations import ACTIVATIONS, functional

CPU = torch.device('cpu')


@pytest.mark.parametrize('argv, expected', [
    (['{repo}/recipes/benchmarks/x.py', '--rounds', '3'], 'python recipes/benchmarks/x.py --rounds 3'),
    (['recipes/benchmarks/x.py', '--output', '{here}/docs/a.md'], 'python recipes/benchmarks/x.py --output docs/a.md'),
    (['x.py', '--json', '/somewhere/else/a.json'], 'python x.py --json a.json'),
    (['x.py', '--name', 'two words'], "python x.py --name 'two words'"),
], ids=['script', 'inside', 'outside', 'quoted'])
def test_a_command_is_whole_and_has_no_absolute_path(argv, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [word.format(here=tmp_path, repo=_benchmarking.Path(__file__).resolve().parents[2]) for word in argv]
    assert _benchmarking.command_line(argv) == expected
    monkeypatch.setattr('sys.argv', argv)
    assert _benchmarking.command_line() == expected


@pytest.mark.parametrize('script, arguments', [
    ('activations', []), ('train_step', []), ('short_run', []), ('attack', []), ('autoattack', ['--network']),
    ('data', ['--archive', 'a.npz']), ('gpu_table', ['.'])], ids=lambda value: value if isinstance(value, str) else '')
def test_a_device_that_is_not_there_is_one_line(script, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    benchmark = importlib.import_module(f'recipes.benchmarks.{script}')
    assert benchmark.main([*arguments, '--device', 'nowhere']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: --device nowhere: ') and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_figures_are_written_with_what_made_them(tmp_path):
    path = tmp_path / 'folder' / 'a.json'
    _benchmarking.write_figures(path, [_benchmarking.Figure('a', [4., 1., 2.], 's')], CPU, ['x.py', '--fast'])
    written = json.loads(path.read_text())
    assert written['measures'] == [{'name': 'a', 'value': 2, 'spread': 1.5, 'rounds': 3, 'unit': 's'}]
    assert written['command'] == 'python x.py --fast' and written['versions']['timm'] == timm.__version__


def test_work_is_that_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    work = _roofline.work_of(model, (3, 8, 8))
    first, last = 2 * 64 * 4 * 27, 2 * 256 * 5
    assert work.forward == work.to_input == first + last
    assert work.to_weights == first + 2 * last  # the gradient of the image is not wanted
    assert work.elements == 3 * 64 + 4 * 64 + 256 + 5 and work.weights == 108 + 1280
    flops, moved = work.floor(images=10, passes=(3, 2, 1), size=2)
    assert flops == 10 * (3 * work.forward + 2 * work.to_input + work.to_weights)
    assert moved == 2 * 7 * (10 * work.elements + work.weights)
    assert next(model.parameters()).device == CPU  # the one given is left alone


@pytest.mark.parametrize('flops, moved, expected', [(50., 1., 0.25), (1., 30., 0.75)], ids=['products', 'copies'])
def test_the_slower_of_products_and_copies_is_the_roofline(flops, moved, expected):
    machine = _roofline.Machine(CPU, ['fp32'], size=8)
    machine.products['fp32'], machine.copies = [100., 50.], [20., 10.]
    assert machine.shares([2., 4.], flops, moved, 'fp32') == [expected, expected]


def test_rates_are_measured_in_every_round():
    machine = _roofline.Machine(CPU, ['fp32', 'bf16', 'fp32'], size=32)
    for _ in range(3):
        machine.round()
    assert {name: len(rates) for name, rates in machine.products.items()} == {'fp32': 3, 'bf16': 3}
    assert len(machine.copies) == 3 and min(machine.copies) > 0
    assert [figure.name for figure in machine.figures()] == [
        'matrix product, fp32', 'matrix product, bf16', 'copy']


@pytest.mark.parametrize('name', list(ACTIVATIONS))
def test_the_plain_loops_formulas_are_those_of_the_activations(name):
    formula, values = _plain_loop.FORMULAS[name]
    parameters = [torch.tensor([value], dtype=torch.float64) for value in values]
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(formula(x, *parameters), getattr(functional, name)(x, *parameters), atol=1e-12, rtol=0)


def test_the_plain_loop_computes_formulas_and_the_same_network():
    model, plain = (timm.create_model('wrn10_2_psoftplus', in_chans=1).eval() for _ in range(2))
    plain.load_state_dict(model.state_dict())
    _plain_loop.plain_formulas(plain)
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-5)
    act = next(iter(timm_paf.activations.shared_activations(plain).values()))
    t = torch.randn(5, requires_grad=True)
    assert 'Softplus' in type(act(t).grad_fn.next_functions[0][0]).__name__


def test_the_attack_of_the_plain_loop_stays_in_the_ball():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    for random_start in (False, True):
        x_adv = _plain_loop.attacked(model, x, y, random_start=random_start)
        assert (x_adv - x).abs().max() <= _plain_loop.EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        assert nn.functional.cross_entropy(model(x_adv), y) > nn.functional.cross_entropy(model(x), y)


@pytest.mark.gpu
def test_time_and_memory_on_a_gpu():
    device = torch.device('cuda')
    x = torch.randn(2048, 2048, device=device)
    x @ x  # what is made once
    once, often = (_benchmarking.seconds(lambda n=n: [x @ x for _ in range(n)], device) for n in (20, 200))
    assert 3 < often / once < 30  # what is queued is waited for
    assert _benchmarking.peak_bytes(lambda: x + 1, device) == x.nbytes
    before = torch.backends.cuda.matmul.allow_tf32
    with _roofline.math_mode('tf32'):
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    with _roofline.math_mode('fp32'):
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before
