"""Edges, shapes, dtypes and derivatives of the functions; test_accuracy.py has their values and gradients."""
import math
from types import SimpleNamespace

import mpmath
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.activations.accuracy import SMOOTH
from timm_paf import kernels
from timm_paf.activations import functional

pytestmark = pytest.mark.usefixtures('reference')  # tests/kernels has the fused functions
INF, NAN = float('inf'), float('nan')
mp = mpmath.mp.clone()
mp.prec = 200


EXACT = SimpleNamespace(
    sigmoid=lambda t: 1 / (1 + mp.exp(-t)), exp=mp.exp, expm1=mp.expm1, log1p=mp.log1p, sqrt=mp.sqrt,
    where=lambda condition, yes, no: yes if condition else no)


def shifted(m, x, a, b):
    return x * (m.sigmoid(a * x) - b) / (1 - b)


# name -> the paper's formula in the functions of m (EXACT or torch), and parameters: initial, learned, negative
REFERENCE = {
    'prelu0': (lambda m, x, a: m.where(x > 0, x, a * x), [(0.,), (0.25,), (-1.5,)]),
    'preluplus': (lambda m, x, a: m.where(x > 0, a * x, 0 * x), [(1.,), (0.4,), (-2.,)]),
    'pelu': (lambda m, x, a: m.where(x > 0, x, a * m.expm1(x)), [(1.,), (0.3,), (-2.,)]),
    'peluplus': (lambda m, x, a: m.where(x > 0, a * x, m.expm1(x)), [(1.,), (0.3,), (-2.,)]),
    'psilu': (lambda m, x, a: x * m.sigmoid(abs(a) * x), [(1.,), (-0.3,), (7.,), (0.,)]),
    'psoftplus': (lambda m, x, a: m.log1p(m.exp(abs(a) * x)) / abs(a), [(1.,), (-0.3,), (7.,)]),
    'reblu': (lambda m, x, a: m.where(x > 0, x + a * (m.sqrt(x * x + 1) - 1), 0 * x), [(0.,), (0.6,), (3.,)]),
    'ssilu': (lambda m, x, b: shifted(m, x, 1, abs(b)), [(0.3,), (-0.05,), (0.9,)]),
    'pssilu_fixed': (lambda m, x, a, b: shifted(m, x, abs(a), abs(b)), [(1., 0.3), (-2., 0.1), (4., 0.3)]),
    'pssilu': (
        lambda m, x, a, b: shifted(m, x, abs(a), abs(b)), [(1., 1e-8), (2.3, 0.05), (-0.4, -0.3), (1., 0.9)]),
}
CASES = [pytest.param(name, p, id=f'{name}-{",".join(map(str, p))}') for name, (_, ps) in REFERENCE.items() for p in ps]
GRID = [s * v for v in (1e-3, 0.5, 1.2784645, 5., 40., 200., 1e4) for s in (1, -1)]


def exact(name, x, parameters):
    return REFERENCE[name][0](EXACT, mp.mpf(x), *(mp.mpf(p) for p in parameters))


def exact_partial(name, x, parameters, index):
    arguments = [mp.mpf(x), *(mp.mpf(p) for p in parameters)]
    h = mp.mpf(10) ** -25 * max(1, abs(arguments[index]))
    up, down = list(arguments), list(arguments)
    up[index], down[index] = up[index] + h, down[index] - h
    formula = REFERENCE[name][0]
    return (formula(EXACT, *up) - formula(EXACT, *down)) / (2 * h)


def evaluate(name, x, parameters, dtype=torch.float64, x_grad=True):
    x = torch.tensor(x, dtype=dtype, requires_grad=x_grad)
    parameters = [torch.tensor([p], dtype=torch.float64, requires_grad=True) for p in parameters]
    return getattr(functional, name)(x, *parameters), x, parameters


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name, parameters', CASES)
def test_only_nan_gives_nan(name, parameters, dtype):
    values = [INF, -INF, 0., -0., 1e4, -1e4, 1e-45 if dtype == torch.float32 else 6e-8, torch.finfo(dtype).max, NAN]
    y, x, tensors = evaluate(name, values, parameters, dtype)
    assert y.dtype == dtype
    assert y.isnan().tolist() == [False] * 8 + [True]
    y[:8].sum().backward()
    assert not x.grad[:8].isnan().any()
    finite, _, tensors = evaluate(name, [v for v in values if math.isfinite(v)][:-1], parameters, dtype)
    finite.sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize('name, inside, beyond', [
    ('psoftplus', (1e-3,), (0.,)), ('psoftplus', (1e-3,), (1e-9,)), ('psoftplus', (-1e-3,), (-1e-9,)),
    ('psilu', (1e4,), (1e9,)), ('pssilu', (1., 0.99), (1., 1.)), ('pssilu', (1., 0.99), (1., 32.9)),
    ('pssilu', (1., -0.99), (1., -13382.)), ('pssilu_fixed', (-1e4, 0.3), (-1e6, 0.3)), ('ssilu', (0.99,), (1.,)),
])
def test_parameters_beyond_their_range_act_as_at_its_edge(name, inside, beyond):
    at_edge, _, edge = evaluate(name, GRID, inside, torch.float32)
    outside, x_out, out = evaluate(name, GRID, beyond, torch.float32)
    torch.testing.assert_close(outside, at_edge)
    for y in (at_edge, outside):
        y.sum().backward()
    assert x_out.grad.isfinite().all()
    for a, b in zip(edge, out, strict=True):
        assert b.grad.isfinite().all()
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('name, parameters, index', [
    ('psilu', (0.,), 0), ('pssilu_fixed', (0., 0.3), 0), ('pssilu', (1., 0.), 1), ('ssilu', (0.,), 0)])
def test_absolute_value_has_a_slope_at_zero(name, parameters, index):
    """So that a parameter at exactly 0 still learns."""
    y, _, tensors = evaluate(name, [-3., -1., 2.], parameters)
    (y * torch.tensor([1., 2., 3.])).sum().backward()
    nudged = [p + 1e-9 if i == index else p for i, p in enumerate(parameters)]
    y, _, tensors_nudged = evaluate(name, [-3., -1., 2.], nudged)
    (y * torch.tensor([1., 2., 3.])).sum().backward()
    assert tensors[index].grad.item() != 0
    torch.testing.assert_close(tensors[index].grad, tensors_nudged[index].grad)


@pytest.mark.parametrize('name', REFERENCE)
def test_one_parameter_a_channel_is_one_function_a_channel(name):
    _, (parameters, *_) = REFERENCE[name]
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    per_channel = [torch.linspace(p + 0.05, p + 0.09, 4, dtype=torch.float64, requires_grad=True) for p in parameters]
    y = getattr(functional, name)(x, *per_channel)
    grads = torch.autograd.grad((y * y).sum(), per_channel)
    for channel in range(4):
        single = [p.detach()[channel:channel + 1].requires_grad_() for p in per_channel]
        y_single = getattr(functional, name)(x.detach()[:, channel], *single)
        torch.testing.assert_close(y[:, channel], y_single)
        for whole, alone in zip(
                grads, torch.autograd.grad((y_single * y_single).sum(), single), strict=True):
            torch.testing.assert_close(whole[channel:channel + 1], alone)
    last = getattr(functional, name)(x.movedim(1, -1), *per_channel, -1)
    torch.testing.assert_close(last.movedim(-1, 1), y)


@pytest.mark.parametrize('name', REFERENCE)
def test_any_shape(name):
    for shape in ((), (0,), (2, 0, 3), (7,), (2, 3, 4, 5, 2)):
        x = torch.randn(shape, requires_grad=True)
        parameters = [torch.tensor([p], requires_grad=True) for p in REFERENCE[name][1][0]]
        y = getattr(functional, name)(x, *parameters)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape and all(p.grad.shape == (1,) for p in parameters)


@pytest.mark.parametrize('name', REFERENCE)
def test_strided_inputs_keep_values_and_layout(name):
    parameters = REFERENCE[name][1][0]
    x = torch.randn(2, 3, 8, 8)
    function = getattr(functional, name)
    expected = function(x, *parameters)
    channels_last = function(x.to(memory_format=torch.channels_last), *parameters)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, expected, rtol=0, atol=0)
    torch.testing.assert_close(function(x[:, :, ::2, 1::3], *parameters), expected[:, :, ::2, 1::3], rtol=1e-6, atol=0)
    torch.testing.assert_close(function(x.flip(2), *parameters), expected.flip(2), rtol=1e-6, atol=0)
    per_channel = [torch.full((3,), p) for p in parameters]
    by_channel = function(x.to(memory_format=torch.channels_last), *per_channel)
    assert by_channel.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(by_channel, expected, rtol=1e-6, atol=0)
    for overlapping in (x[:, :1, :, :1].expand(2, 3, 8, 8), torch.as_strided(x, (4, 5), (1, 2))):
        torch.testing.assert_close(
            function(overlapping, *parameters), function(overlapping.contiguous(), *parameters), rtol=1e-6, atol=0)
    assert function(torch.rand(2, 0, 3), *(torch.ones(0) for _ in parameters)).shape == (2, 0, 3)


@pytest.mark.parametrize('mode', ['reference', 'auto'])
@pytest.mark.parametrize('name', REFERENCE)
def test_backward_keeps_the_input_alone(name, mode):
    kept = []
    x = torch.randn(50, 40, requires_grad=True)
    parameters = [torch.tensor([p], requires_grad=True) for p in REFERENCE[name][1][0]]
    with kernels.use(mode), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        getattr(functional, name)(x, *parameters)
    assert [t.data_ptr() for t in kept if t.numel() == x.numel()] == [x.data_ptr()]


@pytest.mark.parametrize('call, error, message', [
    (lambda: functional.psilu(torch.arange(3), 1.), TypeError, 'torch.int64 tensor; expected a floating-point'),
    (lambda: functional.psilu([1., 2.], 1.), TypeError, 'x is list'),
    (lambda: functional.psilu(torch.rand(2), 'one'), TypeError, "alpha is str 'one'; expected a real number"),
    (lambda: functional.psilu(torch.rand(2), torch.tensor([2])), TypeError, 'alpha is a torch.int64 tensor'),
    (lambda: functional.pssilu(torch.rand(2), 1., torch.tensor(1j)), TypeError, 'beta is a torch.complex64 tensor'),
    (lambda: functional.psilu(torch.rand(2, 3), torch.ones(0)), ValueError, 'holds 0 values'),
    (lambda: functional.psilu(torch.rand(()), torch.ones(2)), ValueError, 'channels along dimension 1'),
    (lambda: functional.psilu(torch.rand(2, 3), torch.ones(4)), ValueError, 'does not have 4 channels'),
    (lambda: functional.pssilu(torch.rand(2, 3), 1., torch.ones(3, 1)), ValueError, 'expected .*C'),
], ids=['integers', 'list', 'string', 'integer-alpha', 'complex-beta', 'none', 'no-rank', 'channels', 'shape'])
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('name', REFERENCE)
def test_first_and_second_derivatives_are_consistent(name):
    """By finite differences, which must cross neither the kink at x = 0 nor that of |p|, nor an edge."""
    x = torch.tensor([-30., -3., -0.7, 0.4, 2., 25.], dtype=torch.float64, requires_grad=True)
    for sign in (1, -1):
        tensors = [torch.tensor([sign * p], dtype=torch.float64, requires_grad=True) for p in SMOOTH[name]]
        assert torch.autograd.gradcheck(getattr(functional, name), (x, *tensors), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(getattr(functional, name), (x, *tensors))


def plain(name, *arguments):
    """The formula in torch's own operations, without care for digits or infinities."""
    return REFERENCE[name][0](torch, *arguments)


@pytest.mark.parametrize('name, inner, outer', [
    *((name, 'jacrev', 'jacfwd') for name in REFERENCE),
    *((name, inner, 'jacrev') for name in ('prelu0', 'pssilu') for inner in ('jacrev', 'jacfwd')),
    ('pssilu', 'jacfwd', 'jacfwd')])
def test_forward_and_reverse_mode_in_any_order(name, inner, outer):
    inner, outer = getattr(torch.func, inner), getattr(torch.func, outer)
    arguments = [torch.tensor([-2., -0.5, 0.3, 1.7], dtype=torch.float64)]
    arguments += [torch.tensor([p], dtype=torch.float64) for p in SMOOTH[name]]
    every = tuple(range(len(arguments)))
    def hessian(function):
        loss = lambda *v: function(*v).square().sum()  # noqa: E731
        return outer(inner(loss, argnums=every), argnums=every)(*arguments)
    ours, expected = hessian(getattr(functional, name)), hessian(lambda *v: plain(name, *v))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', REFERENCE)
def test_tangents_of_some_arguments_in_the_dtype_of_x(name, dtype):
    function, parameters = getattr(functional, name), [torch.tensor([p]) for p in SMOOTH[name]]
    x, direction = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
    y, tangent = torch.func.jvp(lambda v: function(v, *parameters), (x,), (direction,))
    _, expected = torch.func.jvp(lambda v: plain(name, v, *parameters), (x.float(),), (direction.float(),))
    assert y.dtype == tangent.dtype == dtype
    torch.testing.assert_close(tangent.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    first, *rest = parameters
    _, tangent = torch.func.jvp(lambda p: function(x, p, *rest), (first,), (torch.ones(1),))
    _, expected = torch.func.jvp(lambda p: plain(name, x.float(), p, *rest), (first,), (torch.ones(1),))
    torch.testing.assert_close(tangent.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize('name, parameters', CASES)
def test_tangents_at_infinity_are_the_gradients(name, parameters):
    arguments = [torch.tensor([INF, -INF]), *(torch.full((2,), p) for p in parameters)]
    for index, argument in enumerate(arguments):
        def function(changed, index=index):
            return getattr(functional, name)(*arguments[:index], changed, *arguments[index + 1:], 0)

        _, tangent = torch.func.jvp(function, (argument,), (torch.ones(2),))
        leaf = argument.clone().requires_grad_()
        torch.testing.assert_close(tangent, torch.autograd.grad(function(leaf).sum(), leaf)[0])


@pytest.mark.parametrize('name', REFERENCE)
def test_vmap_over_inputs_and_parameters(name):
    function, x = getattr(functional, name), torch.randn(5, 4)
    many = [torch.tensor([[p], [p + 0.1], [p + 0.2], [p + 0.3], [p + 0.4]]) for p in SMOOTH[name]]
    for mapped, parameters in (
            (torch.func.vmap(lambda row: function(row, *(p[0] for p in many)))(x), [p[:1].expand(5, 1) for p in many]),
            (torch.func.vmap(function)(x, *many), many)):
        for row, values, *single in zip(mapped, x, *parameters, strict=True):
            torch.testing.assert_close(row, function(values, *single))


@pytest.mark.parametrize('name', REFERENCE)
def test_tensors_without_data(name):
    x = torch.empty(2, 3, device='meta', dtype=torch.bfloat16, requires_grad=True)
    parameters = [torch.empty(3, device='meta', requires_grad=True) for _ in SMOOTH[name]]
    y = getattr(functional, name)(x, *parameters)
    y.sum().backward()
    assert y.is_meta and y.dtype == x.grad.dtype == torch.bfloat16
    assert all(p.grad.shape == (3,) and p.grad.dtype == torch.float32 for p in parameters)
    with FakeTensorMode():
        fake = torch.randn(2, 3, requires_grad=True)
        getattr(functional, name)(fake, *SMOOTH[name]).sum().backward()
        assert fake.grad.shape == (2, 3)


@pytest.mark.parametrize('name', REFERENCE)
def test_scripted_functions_have_the_same_gradients(name):
    """TorchScript differentiates the value itself, also at the kink."""
    function = getattr(functional, name)
    scripted = torch.jit.script(function)
    x = torch.tensor([-3., 0., 2.], requires_grad=True)
    parameters = [torch.tensor([p], requires_grad=True) for p in SMOOTH[name]]
    for _ in range(3):  # the second and third call run what the profile of the first has made
        ours = torch.autograd.grad(scripted(x, *parameters).sum(), [x, *parameters])
        torch.testing.assert_close(ours, torch.autograd.grad(function(x, *parameters).sum(), [x, *parameters]))


@pytest.mark.parametrize('name, parameters', [
    *CASES, pytest.param('pssilu', (0., 0.5), id='pssilu-0,0.5'), pytest.param('reblu', (-1.,), id='reblu--1')])
def test_second_derivatives_at_infinity_are_numbers(name, parameters):
    x = torch.tensor([INF, -INF, 0., -0., 1e30, -1e30, 3e38], requires_grad=True)
    tensors = [torch.tensor([p], requires_grad=True) for p in parameters]
    (slope,) = torch.autograd.grad(getattr(functional, name)(x, *tensors).sum(), x, create_graph=True)
    assert slope.isfinite().all()
    second = torch.autograd.grad(slope.sum(), [x, *tensors], allow_unused=True)
    assert second[0] is None or (second[0].isfinite().all() and (second[0][[0, 1]] == 0).all())
    assert not any(g.isnan().any() for g in second if g is not None)


@pytest.mark.parametrize('name', REFERENCE)
def test_nan_goes_into_every_gradient(name):
    x = torch.tensor([NAN, 1.], requires_grad=True)
    tensors = [torch.full((2,), p, requires_grad=True) for p in SMOOTH[name]]
    getattr(functional, name)(x, *tensors, 0).sum().backward()
    for tensor in (x, *tensors):
        assert tensor.grad.isnan().tolist() == [True, False]


def test_gradients_have_the_dtype_of_their_tensor():
    x = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
    for dtype in (torch.float64, torch.float16):
        alpha = torch.tensor(1., dtype=dtype, requires_grad=True)
        grad_x, grad_alpha = torch.autograd.grad(functional.psilu(x, alpha).sum(), [x, alpha])
        assert grad_x.dtype == torch.bfloat16 and grad_alpha.dtype == dtype and grad_alpha.shape == ()


def test_half_precision_gradient_is_multiplied_before_it_is_rounded():
    """Nothing on the way to a gradient is limited to the range of float16, whose largest number is 65504."""
    large, alpha = torch.tensor([4e4], dtype=torch.float16), torch.tensor(1., requires_grad=True)
    x = torch.zeros(1, dtype=torch.float16, requires_grad=True)
    assert torch.autograd.grad(functional.psilu(x, 1.), x, large)[0].item() == 2e4
    y = functional.preluplus(torch.full((1,), 100., dtype=torch.float16), alpha)
    assert torch.autograd.grad(y, alpha, large)[0].item() == pytest.approx(4e6, rel=1e-3)


@pytest.mark.parametrize('name', REFERENCE)
def test_tracing_records_operations_of_torch_without_a_warning(name):
    parameters = [torch.tensor([p]) for p in SMOOTH[name]]
    x = torch.randn(3, 4)
    traced = torch.jit.trace(getattr(functional, name), (torch.rand(2, 5), *parameters))
    assert 'PythonOp' not in str(traced.graph)
    torch.testing.assert_close(traced(x, *parameters), getattr(functional, name)(x, *parameters))
