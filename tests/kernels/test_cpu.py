"""The compiled functions against the formulas in float64, in arbitrary precision and under torch's own checks."""
import copy
import math
from unittest import mock

import pytest
import timm
import torch
from torch.autograd import forward_ad

from tests.activations import accuracy
from tests.activations.accuracy import LAYOUTS, SMOOTH
from timm_paf import kernels
from timm_paf.activations import functional
from timm_paf.kernels import cpu

INF, NAN = math.inf, math.nan
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

@pytest.fixture(autouse=True)
def only_fused():
    """A compiler that fails is an error here."""
    if 'there is no C++ compiler' in (cpu.available('pssilu', torch.float32) or ''):
        pytest.skip('there is no C++ compiler')
    with kernels.use('fused'):
        yield


def tensors(name, dtype=torch.float64, channels=None):
    parameters = SMOOTH[name]
    if channels is None:
        return [torch.tensor([p], dtype=dtype, requires_grad=True) for p in parameters]
    return [torch.linspace(p, p + 0.2, channels, dtype=dtype).requires_grad_() for p in parameters]


def value_and_gradients(name, x, parameters, grad, channel_dim=1):
    x = x.detach().requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    y = getattr(functional, name)(x, *parameters, channel_dim)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], grad)]


def assert_close_to_reference(name, x, parameters, grad, channel_dim=1):
    rounded = [p.to(torch.float64 if x.dtype == torch.float64 else torch.float32).double() for p in parameters]
    with kernels.use('reference'):
        expected = value_and_gradients(name, x.double(), rounded, grad.double(), channel_dim)
    ours = value_and_gradients(name, x, parameters, grad, channel_dim)
    eps = torch.finfo(x.dtype).eps
    wide = 2.**-52 if x.dtype == torch.float64 else 2.**-23
    for got, exact, tolerance in zip(ours, expected, (eps, eps, *[wide] * len(parameters)), strict=True):
        terms = (grad.double().abs() * (1 + x.double().square())).sum().item()  # of a sum, with what it loses by signs
        atol = 8 * tolerance if got.shape == x.shape and got.dim() else tolerance * max(terms, 8.)
        torch.testing.assert_close(got.double(), exact, rtol=8 * tolerance, atol=atol)
    assert ours[0].dtype == ours[1].dtype == x.dtype
    return ours


ALL = [(name, layout, per_channel, dtype)
       for name in SMOOTH for layout in LAYOUTS for per_channel in (False, True) for dtype in DTYPES]


# every layout with PSSiLU in float32, every pair of name and dtype; the whole product in the slow run
@pytest.mark.parametrize('name, layout, per_channel, dtype', [
    pytest.param(*case, marks=[] if case[::3] == ('pssilu', torch.float32) or case[1:3] == ('channels_last', True)
                 else pytest.mark.slow) for case in ALL], ids=str)
def test_every_layout_equals_the_reference_in_float64(name, layout, per_channel, dtype):
    x = LAYOUTS[layout]((3 * torch.randn(3, 5, 7, 11)).to(dtype))
    grad = torch.randn(x.shape).to(dtype)
    parameters = tensors(name, channels=5 if per_channel else None)
    y, dx, *_ = assert_close_to_reference(name, x, parameters, grad)
    assert y.stride() == dx.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize('shape, channel_dim', [
    ((600,), 0), ((70, 600), 1), ((600, 70), 0), ((2, 3, 1025), 1), ((2, 3, 1025), -1), ((3, 1, 4, 4), 2)], ids=str)
def test_channels_along_any_dimension(shape, channel_dim):
    x, grad = torch.randn(shape), torch.randn(shape)
    parameters = tensors('pssilu', channels=shape[channel_dim])
    assert_close_to_reference('pssilu', x, parameters, grad, channel_dim)
    one = [parameters[0].detach()[:1], parameters[1]]  # one alpha, and one beta per channel
    assert_close_to_reference('pssilu', x, one, grad, channel_dim)


@pytest.mark.parametrize('dtype', accuracy.DTYPES)
@pytest.mark.parametrize('name', list(accuracy.FORMULAS))
def test_errors_stay_within_what_is_stated(name, dtype):
    dtype = accuracy.DTYPES[dtype]
    for parameters in accuracy.FORMULAS[name][1]:
        x = accuracy.grid(name, parameters, dtype, per_binade=16)
        for order in (x, x[x.abs().argsort()]):  # large numbers among small ones, and by themselves
            errors = accuracy.measure(name, order, parameters)
            for quantity, bound in accuracy.stated(name, dtype).items():
                worst = int(errors.ulps[quantity].argmax())
                assert errors.ulps[quantity][worst] <= bound, (parameters, quantity, errors.x[worst])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
def test_sums_of_four_million_elements_are_those_of_float32_or_better(dtype, layout):
    assert accuracy.sum_error(dtype, LAYOUTS[layout]) <= accuracy.STATED_SUM


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name, parameters', [
    (name, p) for name, (_, choices) in accuracy.FORMULAS.items() for p in choices], ids=str)
def test_infinity_nan_and_the_edges_of_the_format_as_the_reference_has_them(name, parameters, dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([INF, -INF, NAN, 0., -0., info.max, -info.max, info.tiny, -info.smallest_normal], dtype=dtype)
    parameters = [torch.full(x.shape, p, dtype=torch.float64) for p in parameters]
    ours = value_and_gradients(name, x, parameters, torch.ones_like(x), 0)
    with kernels.use('reference'):
        expected = value_and_gradients(name, x, parameters, torch.ones_like(x), 0)
    for got, exact in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=8 * info.eps, atol=8 * info.tiny, equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_read_and_rounded_as_torch_does(dtype):
    every = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
    one = torch.ones(1)
    same = functional.prelu0(every, one)
    torch.testing.assert_close(same, every, rtol=0, atol=0, equal_nan=True)
    finite = ~every.isnan()
    assert torch.equal(same.view(torch.int16)[finite & (every != 0)], every.view(torch.int16)[finite & (every != 0)])
    for slope in (1 / 3, 1.0009765625 / 2, 5e-5, 3.):
        alpha = torch.tensor([slope])
        ours, expected = functional.prelu0(-every.abs(), alpha), (-every.abs().float() * alpha).to(dtype)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('name', SMOOTH)
def test_any_shape(name):
    for shape in ((), (0,), (2, 0, 3), (0, 4), (1,), (17,), (4097,)):
        x = torch.randn(shape, dtype=torch.float64)
        assert_close_to_reference(name, x, tensors(name), torch.randn_like(x))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('channels', [None, 8], ids=['one', 'per-channel'])
def test_sums_do_not_depend_on_the_number_of_threads(layout, channels):
    x = LAYOUTS[layout](torch.randn(16, 8, 64, 32))
    grad, parameters = torch.randn_like(x), tensors('pssilu', channels=channels)
    alone = value_and_gradients('pssilu', x, parameters, grad)
    torch.set_num_threads(2)
    try:
        shared = value_and_gradients('pssilu', x, parameters, grad)
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, alone, shared))


@pytest.mark.parametrize('name', SMOOTH)
def test_derivatives_are_consistent_to_second_order_and_in_forward_mode(name):
    x = torch.tensor([-30., -3., -0.7, 0.4, 2., 25.], dtype=torch.float64, requires_grad=True)
    parameters = tensors(name)
    function = getattr(functional, name)
    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(function(dual, *parameters)).tangent
    slope = torch.autograd.grad(function(x, *parameters).sum(), x)[0]
    torch.testing.assert_close(tangent, slope)
    y = function(x, *parameters)
    with forward_ad.dual_level():  # of the backward pass alone
        dual = forward_ad.make_dual(torch.ones_like(y), torch.full_like(y, 3.))
        tangent = forward_ad.unpack_dual(torch.autograd.grad(y, x, dual)[0]).tangent
    torch.testing.assert_close(tangent, 3 * slope)


@pytest.mark.parametrize('asked, sums', [
    (lambda y, x, p: torch.autograd.grad(y.sum(), x), False),
    (lambda y, x, p: y.sum().backward(inputs=[x]), False),
    (lambda y, x, p: torch.autograd.grad(y.sum(), p), True),
    (lambda y, x, p: torch.autograd.grad(y.sum(), [x, p[1]]), True),
    (lambda y, x, p: y.sum().backward(), True),
], ids=['grad-x', 'backward-x', 'grad-parameters', 'grad-x-and-beta', 'backward'])
def test_sums_are_made_only_when_they_are_asked_for(asked, sums):
    x, parameters = torch.randn(8, requires_grad=True), tensors('pssilu', torch.float32)
    with mock.patch.object(cpu, 'gradients', wraps=cpu.gradients) as gradients:
        asked(functional.pssilu(x, *parameters), x, parameters)
    assert [call.args[-1] for call in gradients.call_args_list] == [sums]


def test_gradients_of_several_outputs_at_once():
    x, parameters = torch.randn(4, requires_grad=True), tensors('pssilu', torch.float32)
    y = functional.pssilu(x, *parameters)
    rows = torch.autograd.grad(y, [x, *parameters], torch.eye(4), is_grads_batched=True, retain_graph=True)
    for each, row in zip(torch.eye(4), zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(y, [x, *parameters], each, retain_graph=True))


def test_gradients_of_some_inputs_are_right():
    inputs = [torch.randn(8, requires_grad=True), *(p * 2 for p in tensors('pssilu', torch.float32))]
    y = functional.pssilu(*inputs).square().sum()
    for tensor, expected in zip(inputs, torch.autograd.grad(y, inputs, retain_graph=True), strict=True):
        torch.testing.assert_close(torch.autograd.grad(y, tensor, retain_graph=True)[0], expected)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_parameters_of_another_dtype_and_stride(dtype):
    x = torch.randn(3, 4)
    alpha, beta = torch.rand(8).to(dtype)[::2], torch.rand(4, 2).to(dtype)[:, 0] / 2
    y, _, *grads = value_and_gradients('pssilu', x, [alpha, beta], torch.ones(3, 4))
    with kernels.use('reference'):
        expected = value_and_gradients('pssilu', x, [alpha.float(), beta.float()], torch.ones(3, 4))
    torch.testing.assert_close(y, expected[0])
    for grad, exact in zip(grads, expected[2:], strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, exact.to(dtype))


def test_a_tensor_whose_sign_waits_to_be_changed():
    x = torch.randn(5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(functional.psilu(x, 1.3), x.clone() * torch.sigmoid(1.3 * x.clone()))


@pytest.mark.parametrize('act', ['pssilu', 'psoftplus'])
def test_a_network_computes_what_the_reference_does(act):
    torch.manual_seed(0)
    model = timm.create_model(f'wrn10_2_{act}', in_chans=1).double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)

    def gradients():
        twin = copy.deepcopy(model)  # whose statistics are new
        return torch.autograd.grad(twin(x).square().mean(), list(twin.parameters()))
    ours = gradients()
    with kernels.use('reference'):
        torch.testing.assert_close(ours, gradients(), rtol=1e-9, atol=1e-12)
