"""Shapes against closed forms, and searched properties against known ones."""
import importlib.util
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from timm_paf.activations import ACTIVATIONS, PSoftplus, PSSiLU, functional, shape

INF = math.inf
SILU_AT, SILU_LEAST = -1.2784645427610738, -0.27846454276107379  # -(1 + W(1/e)) and -W(1/e), W being Lambert's


def near(value):
    return pytest.approx(value, rel=1e-7, abs=1e-12)


# name, parameters, and what closed forms say
CLOSED_FORMS = [
    ('relu', {}, dict(
        curvature=INF, curvature_at=0., finite_curvature=0., negative_sign='zero', slope_left=0., slope_right=1.,
        smoothness='C0', zeros=(), zero_on=((-INF, 0.),), monotonicity='increasing', negative_mean=0.)),
    ('silu', {}, dict(
        curvature=0.5, curvature_at=0., negative_sign='negative', negative_min=SILU_LEAST, negative_min_at=SILU_AT,
        negative_max=0., negative_max_at=0., slope_left=0., slope_right=1., smoothness='smooth', zeros=(0.,),
        monotonicity='neither', falls_on=((-INF, SILU_AT),), negative_on=((-INF, 0.),), positive_on=())),
    ('softplus', {}, dict(
        curvature=0.25, curvature_at=0., negative_sign='positive', negative_max=math.log(2), negative_max_at=0.,
        negative_min=0., negative_min_at=-INF, slope_left=0., slope_right=1., smoothness='smooth', zeros=(),
        monotonicity='increasing', positive_on=((-INF, 0.),))),
    ('gelu', {}, dict(
        curvature=2 / math.sqrt(2 * math.pi), curvature_at=0., slope_right=1., smoothness='smooth', zeros=(0.,),
        negative_min_at=-0.75179152469)),
    ('elu', {}, dict(
        curvature=1., curvature_at=0., smoothness='C1', monotonicity='increasing', negative_min=-1.,
        negative_min_at=-INF, negative_mean=-1 + (1 - math.exp(-8)) / 8, breaks=(shape.Break(0., 2, -1.),))),
    ('tanh', {}, dict(  # |f''| = 2 t (1 - t^2), greatest at t = 1/sqrt(3)
        curvature=4 / 3 / math.sqrt(3), curvature_at=-math.atanh(1 / math.sqrt(3)), slope_left=0., slope_right=0.)),
    ('hard_swish', {}, dict(
        curvature=INF, curvature_at=-3., finite_curvature=1 / 3, negative_min=-0.375, negative_min_at=-1.5,
        zero_on=((-INF, -3.),), zeros=(0.,), falls_on=((-3., -1.5),), smoothness='C0', negative_mean=-0.75 / 8)),
    ('prelu0', {'alpha': -0.2}, dict(
        negative_sign='positive', monotonicity='neither', falls_on=((-INF, 0.),), slope_left=-0.2, negative_max=INF,
        negative_max_at=-INF, negative_mean=0.8, breaks=(shape.Break(0., 1, 1.2),))),
    ('prelu0', {'alpha': 1.}, dict(curvature=0., smoothness='smooth', breaks=(), zeros=(0.,))),
    ('preluplus', {'alpha': 0.}, dict(monotonicity='constant', zero_on=((-INF, INF),), smoothness='smooth')),
    ('pelu', {'alpha': 0.5}, dict(
        curvature=INF, finite_curvature=0.5, finite_curvature_at=0., smoothness='C0', negative_min=-0.5,
        negative_min_at=-INF, breaks=(shape.Break(0., 1, 0.5),))),
    ('pelu', {'alpha': 1 + 1e-7}, dict(curvature=INF, smoothness='C0')),
    ('pelu', {'alpha': -2.}, dict(
        negative_sign='positive', negative_max=2., negative_max_at=-INF, falls_on=((-INF, 0.),),
        negative_mean=2 - (1 - math.exp(-8)) / 4)),
    ('peluplus', {'alpha': 3.}, dict(slope_left=0., slope_right=3., curvature=INF, finite_curvature=1.)),
    ('psilu', {'alpha': 0.}, dict(curvature=0., slope_left=0.5, slope_right=0.5, monotonicity='increasing')),
    ('reblu', {'alpha': 0.6}, dict(
        slope_left=0., slope_right=1.6, curvature=INF, finite_curvature=0.6, finite_curvature_at=0.,
        negative_sign='zero', smoothness='C0')),
    ('reblu', {'alpha': -2.}, dict(  # f' = 1 - 2 x/sqrt(x^2 + 1)
        falls_on=((1 / math.sqrt(3), INF),), zeros=(4 / 3,), slope_right=-1., monotonicity='neither')),
    ('ssilu', {'beta': 0.3}, dict(
        curvature=0.5 / 0.7, slope_left=-0.3 / 0.7, slope_right=1., zeros=(-math.log(7 / 3), 0.))),
    ('pssilu_fixed', {'alpha': -2., 'beta': 0.1}, dict(curvature=1 / 0.9, zeros=(-math.log(9) / 2, 0.))),
    ('pssilu', {'alpha': 2., 'beta': 0.1}, dict(
        curvature=1 / 0.9, curvature_at=0., slope_left=-0.1 / 0.9, slope_right=1., zeros=(-math.log(9) / 2, 0.),
        negative_sign='mixed', positive_on=((-INF, -math.log(9) / 2),), negative_on=((-math.log(9) / 2, 0.),),
        negative_max=INF, negative_max_at=-INF, smoothness='smooth')),
    ('pssilu', {'alpha': 1., 'beta': 0.5}, dict(  # x (sigmoid(x) - 1/2) 2 touches 0 and is even
        negative_sign='positive', zeros=(0.,), falls_on=((-INF, 0.),), negative_min=0., negative_min_at=0.)),
    ('pssilu', {'alpha': 1e4, 'beta': 0.3}, dict(
        curvature=5e3 / 0.7, curvature_at=0., zeros=(-math.log(7 / 3) / 1e4, 0.), slope_left=-0.3 / 0.7)),
    ('pssilu', {'alpha': 1e-12, 'beta': 0.3}, dict(
        zeros=(-math.log(7 / 3) * 1e12, 0.), slope_left=-0.3 / 0.7, negative_max=INF)),
    ('pssilu', {'alpha': 0., 'beta': 0.99}, dict(
        curvature=0., slope_left=-49., slope_right=-49., monotonicity='decreasing', falls_on=((-INF, INF),))),
]


@pytest.mark.parametrize('name, parameters, expected', [
    pytest.param(*case, id=f'{case[0]}-{",".join(map(str, case[1].values()))}-{n}')
    for n, case in enumerate(CLOSED_FORMS)])
def test_closed_forms(name, parameters, expected):
    found = shape.describe(name, **parameters)
    for field, value in expected.items():
        if isinstance(value, tuple):
            pairs = zip(getattr(found, field), value, strict=True)
            assert all((vars(a) if field == 'breaks' else a) == near(vars(b) if field == 'breaks' else b)
                       for a, b in pairs), field
        else:
            assert getattr(found, field) == (value if isinstance(value, str) else near(value)), field


@settings(max_examples=10, deadline=None)
@given(st.floats(-4, 4).map(lambda e: 10.**e), st.sampled_from([-1, 1]), st.floats(1e-8, 0.99))
def test_pssilu_at_any_parameters(alpha, sign, beta):
    found = shape.describe('pssilu', alpha=sign * alpha, beta=-sign * beta)
    assert (found.curvature, found.curvature_at) == near((alpha / 2 / (1 - beta), 0.))
    assert (found.slope_left, found.slope_right) == near((-beta / (1 - beta), 1.))
    crossing = -math.log((1 - beta) / beta) / alpha
    if abs(beta - 0.5) > 1e-6:
        assert found.zeros == near(tuple(sorted((crossing, 0.))))
        assert found.negative_sign == ('mixed' if beta < 0.5 else 'positive')
    assert found.monotonicity == 'neither' and len(found.falls_on) == 1


@settings(max_examples=6, deadline=None)
@given(st.floats(-3, 4).map(lambda e: 10.**e))
def test_psoftplus_and_psilu_at_any_sharpness(alpha):
    softplus, silu = shape.describe('psoftplus', alpha=alpha), shape.describe('psilu', alpha=alpha)
    assert (softplus.curvature, softplus.curvature_at) == near((alpha / 4, 0.))
    assert (softplus.negative_sign, softplus.negative_min_at) == ('positive', -INF)
    assert softplus.negative_max == near(math.log(2) / alpha)
    assert silu.curvature == near(alpha / 2)
    # PSiLU is SiLU with both axes divided by alpha
    assert (silu.negative_min, silu.negative_min_at) == (
        pytest.approx(SILU_LEAST / alpha, rel=1e-9), pytest.approx(SILU_AT / alpha, rel=1e-7))


@pytest.mark.parametrize('name, parameters', [
    ('prelu0', (-0.2,)), ('pelu', (1.,)), ('pelu', (0.5,)), ('psoftplus', (1e3,)), ('psoftplus', (0.02,)),
    ('reblu', (0.6,)), ('pssilu', (50., 0.3)),
])
def test_a_search_finds_what_is_known_in_closed_form(name, parameters):
    """A search on the bare function finds the breaks and limits that the registered name has from its formula."""
    labels = ACTIVATIONS[name].parameter_specs
    known = shape.describe(name, **dict(zip(labels, parameters, strict=True)))
    found = shape.describe(lambda x: getattr(functional, name)(x, *parameters))
    for field in ('curvature', 'finite_curvature', 'slope_left', 'slope_right', 'negative_min', 'negative_max',
                  'negative_mean', 'zeros'):
        assert getattr(found, field) == near(getattr(known, field)), field
    assert found.smoothness == {'smooth': 'C2+'}.get(known.smoothness, known.smoothness)
    assert [(s.x, s.order) for s in found.breaks] == [(s.x, s.order) for s in known.breaks]
    assert found.falls_on == tuple(near(interval) for interval in known.falls_on)


@pytest.mark.parametrize('function, breaks', [
    (lambda x: torch.relu(x - 1 / 3), [(1 / 3, 1, 1.)]),
    (lambda x: torch.relu(x).square(), [(0., 2, 2.)]),
    (lambda x: (x - 1.3).abs() + torch.where(x > 2, x, 0.), [(1.3, 1, 2.), (2., 0, 2.)]),
    (lambda x: x.clamp(-1, 1), [(-1., 1, 1.), (1., 1, -1.)]),
    (nn.functional.softplus, []),  # turns linear at 20, with a jump of 2e-9
    (torch.exp, []),
    (lambda x: x.pow(3), []),
], ids=['shifted-relu', 'squared-relu', 'kink-and-jump', 'hardtanh', 'softplus', 'exp', 'cube'])
def test_breaks_of_functions(function, breaks):
    found = shape.describe(function)
    assert [tuple(vars(spot).values()) for spot in found.breaks] == [near(spot) for spot in breaks]
    assert found.smoothness == ('discontinuous', 'C0', 'C1', 'C2+')[min((b[1] for b in breaks), default=3)]


def test_limits_that_are_infinite_or_missing():
    assert shape.describe(lambda x: x.pow(3)).slope_left == INF
    exp = shape.describe(torch.exp)
    assert (exp.curvature, exp.curvature_at, exp.slope_left, exp.slope_right) == (INF, INF, 0., INF)
    assert math.isnan(shape.describe(lambda x: x + torch.sin(x).square()).slope_right)


def test_special_places():
    found = shape.describe(lambda x: torch.where(x < 2, x.clamp(min=0).pow(3) / 6, 2 * x - 8 / 3))
    assert (found.curvature, found.curvature_at, found.smoothness) == (near(2.), 2., 'C1')  # next to a break
    found = shape.describe(lambda x: x - x.tanh())  # 0 in float64 for |x| < 1e-8, by cancellation
    assert (found.zeros, found.zero_on, found.negative_on) == ((0.,), (), ((-INF, 0.),))
    assert shape.describe(lambda x: (x - 1.3).abs()).zeros == (1.3,)
    found = shape.describe(lambda x: torch.where(x > 2, x - 1, x))  # a downward jump
    assert found.falls_on == ((2., 2.),) and found.monotonicity == 'neither'


@pytest.mark.parametrize('length', [0.5, 100.])
def test_mean_over_the_stated_range(length):
    found = shape.describe('elu', mean_range=length)
    assert found.negative_mean == near(-1 - math.expm1(-length) / length) and found.mean_range == length


def test_learned_values_are_read_and_the_module_is_left_alone():
    module = PSSiLU(alpha=2., beta=0.1).train()
    with torch.no_grad():
        module.alpha.fill_(3.)
    found = shape.describe(module)
    assert found.parameters == {'alpha': 3., 'beta': near(0.1)} and found.name == 'pssilu'
    assert found.curvature == pytest.approx(1.5 / 0.9, rel=1e-6)
    assert module.training and module.alpha.dtype == torch.float32 and module.alpha.grad is None
    with torch.no_grad(), pytest.raises(ValueError, match='expected finite parameters'):
        shape.describe(module.apply(lambda m: m.alpha.fill_(math.nan)))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_learned_values_at_and_beyond_the_edges_have_a_shape(name):
    module = ACTIVATIONS[name]()
    for value in (0., -0., 1e-45, 0.99, 1e5, -1e20):
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.fill_(value)
        found = shape.describe(module)
        numbers = [v for v in found.to_dict().values() if isinstance(v, float)]
        assert not any(map(math.isnan, numbers)) and math.isfinite(found.finite_curvature), value


def test_a_module_is_described_in_inference_mode_and_in_place():
    module = PSSiLU(alpha=2.)
    with torch.inference_mode():
        assert shape.describe(module).curvature == near(1.)
        assert shape.describe(nn.ReLU(inplace=True)).curvature == INF
        assert shape.describe(PSoftplus(alpha=2.)).curvature == 0.5


@pytest.mark.parametrize('activation, parameters, error, words', [
    ('psilo', {}, ValueError, 'did you mean psilu'),
    ('pssilu', {'alpha': 2e4}, ValueError, r'expected 0 <= \|alpha\|'),
    ('relu', {'alpha': 1.}, ValueError, "'relu' does not accept alpha"),
    ('relu', {'mean_range': 0.}, ValueError, 'mean_range = 0.0'),
    (PSSiLU(), {'alpha': 2.}, TypeError, 'is a module and has its parameters'),
    (PSSiLU(num_parameters=3), {}, ValueError, 'one value per channel'),
    (PSSiLU(device='meta'), {}, ValueError, 'meta device'),
    (3, {}, TypeError, 'expected a name'),
    (nn.GELU, {}, TypeError, 'nn.Module instance'),
    (lambda x: x.softmax(0), {}, ValueError, 'not elementwise'),
    (lambda x: x.sum(), {}, ValueError, 'expected the same of both'),
    (lambda x: x.detach() * 2, {}, ValueError, 'through autograd'),
    (torch.sqrt, {}, ValueError, 'finite on'),
    (torch.sin, {}, ValueError, 'oscillates without end'),
], ids=['unknown', 'range', 'foreign-parameter', 'mean-range', 'module-and-parameters', 'channels', 'meta',
         'number', 'class', 'softmax', 'sum', 'detached', 'sqrt', 'sine'])
def test_errors_say_what_to_do(activation, parameters, error, words):
    with pytest.raises(error, match=words):
        shape.describe(activation, **parameters)


def test_rows_and_tables():
    found = shape.describe('pssilu', alpha=2., beta=0.1)
    row = found.to_dict()
    assert json.loads(json.dumps(row)) == row
    assert list(row)[:4] == ['name', 'alpha', 'beta', 'curvature'] and row['negative_max'] == INF
    assert row['zeros'] == '-1.09861, 0' and row['alpha'] == 2. and row['curvature'] == found.curvature
    text = str(found)
    lines = {line.split('│')[1].strip(): line.split('│')[2].strip() for line in text.splitlines() if '│' in line}
    assert text.splitlines()[0].strip() == 'pssilu(alpha=2, beta=0.1)'
    assert lines['curvature'] == '1.11111 at x = 0'
    assert lines['negative on'] == '(-1.09861, 0)' and lines['breaks'] == 'none'


matplotlib = pytest.mark.skipif(importlib.util.find_spec('matplotlib') is None, reason='needs matplotlib')


@matplotlib
def test_plot_draws_values_and_derivatives_without_spikes(tmp_path):
    from matplotlib import pyplot
    figure = shape.plot({'kinked': 'relu', 'smooth': 'silu'}, x_range=(-2., 3.))
    assert [axes.get_ylabel() for axes in figure.axes] == ['f(x)', 'f′(x)', 'f″(x)']
    lines = [[line for line in axes.lines if line.get_label() in ('kinked', 'smooth')] for axes in figure.axes]
    relu = [torch.as_tensor(panel[0].get_ydata()) for panel in lines]
    x = torch.as_tensor(lines[0][0].get_xdata())
    torch.testing.assert_close(relu[0], x.clamp(min=0), rtol=0, atol=1e-14)
    assert (relu[1].isnan() == (x == 0)).all() and set(relu[1][x != 0].tolist()) == {0., 1.}
    assert (relu[2].isnan() == (x == 0)).all() and not relu[2][x != 0].any()
    marks = [line for line in figure.axes[2].lines if set(line.get_xdata()) == {0.} and line.get_color() != '0.6']
    assert [line.get_color() for line in marks] == [lines[2][0].get_color()]  # ReLU's kink, and none of SiLU
    silu = torch.as_tensor(lines[2][1].get_ydata())
    assert float(silu.max()) == pytest.approx(0.5, abs=1e-4) and not silu.isnan().any()
    styles = [(line.get_linestyle(), line.get_marker()) for line in lines[0]]
    assert styles[0][0] != styles[1][0] and styles[0][1] != styles[1][1]  # readable without colour
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['kinked', 'smooth']
    figure.savefig(tmp_path / 'shapes.png')
    assert not pyplot.get_fignums()


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError, match=r"pip install 'timm-paf\[plot\]'"):
        shape.plot('relu')


@matplotlib
@pytest.mark.parametrize('activations, x_range, words', [
    ([], (-1., 1.), 'at least one activation'), ('relu', (1., 1.), 'x_range')], ids=['nothing', 'empty-range'])
def test_plot_errors(activations, x_range, words):
    with pytest.raises(ValueError, match=words):
        shape.plot(activations, x_range=x_range)
