"""The Triton source against the reference, on a GPU, or in Triton's interpreter with TRITON_INTERPRET=1.

Triton compiles a kernel again for each dtype, activation and kind of gradient, and also if a size is 1 or no multiple
of 16. Sizes here are multiples of 16 in all cases but one, so that the cases of a kernel share what is compiled.
"""
import os

import numpy as np
import pytest
import torch

pytest.importorskip('triton')

from tests.activations import accuracy
from timm_paf import kernels
from timm_paf.activations import functional
from timm_paf.kernels import gpu

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
PARAMETERS = {name: accuracy.SMOOTH[name] for name in sorted(gpu.NAMES)}
INF, NAN = float('inf'), float('nan')
pytestmark = [
    pytest.mark.filterwarnings('ignore::RuntimeWarning'),  # numpy's, of infinities in the interpreter
    *([] if INTERPRETED else [pytest.mark.gpu])]


@pytest.fixture(autouse=True)
def reference():
    with kernels.use('reference'):
        torch.manual_seed(0)
        yield


def compare(name, x, parameters, channel_dim=1):
    x, parameters = x.to(DEVICE), [p.to(DEVICE) for p in parameters]
    grad = torch.randn(x.shape).to(x)
    alpha, beta = (*parameters, None)[:2]
    wide = x.double().requires_grad_()
    exact = [p.double().requires_grad_() for p in parameters]
    y = getattr(functional, name)(wide, *exact, channel_dim)
    expected = torch.autograd.grad(y, [wide, *exact], grad.double())
    tolerance = dict(rtol=1e-5 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps, atol=1e-5)
    value = gpu.value(name, x, alpha, beta, channel_dim)
    alone, *none = gpu.gradients(name, grad, x, alpha, beta, channel_dim, False)
    dx, *sums = gpu.gradients(name, grad, x, alpha, beta, channel_dim, True)
    assert value.dtype == dx.dtype == x.dtype and value.stride() == dx.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(value.double(), y.detach(), **tolerance)
    torch.testing.assert_close(dx.double(), expected[0], **tolerance)
    assert torch.equal(alone, dx) and none == [None, None]
    terms = float((grad.double().abs() * (1 + x.double().square())).sum())
    for total, right in zip(sums, expected[1:], strict=False):
        assert total.shape == right.shape and total.dtype == torch.float32
        torch.testing.assert_close(total.double(), right, rtol=1e-5, atol=2.**-22 * terms)
    assert len(parameters) == 2 or sums[1] is None


def given(name):
    return [torch.tensor([p]) for p in PARAMETERS[name]]


@pytest.mark.parametrize('name, dtype', [
    *((name, dtype) for dtype in (torch.bfloat16, torch.float32) for name in PARAMETERS), ('pssilu', torch.float16)],
    ids=str)
def test_values_and_gradients(name, dtype):
    compare(name, (3 * torch.randn(2, 3, 64, 37)).to(dtype), given(name))


@pytest.mark.parametrize('size', [5, 4096 + 1])
def test_sizes_that_fill_no_block(size):
    compare('pssilu', torch.randn(size), given('pssilu'), channel_dim=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced', 'expanded'])
def test_layouts(layout, dtype):
    x = accuracy.LAYOUTS[layout](torch.randn(2, 3, 9, 32).to(dtype))
    compare('pssilu', x, given('pssilu'))
    compare('pssilu', x, [torch.linspace(p, p + 0.2, 3) for p in PARAMETERS['pssilu']])
    compare('pssilu', x, [torch.tensor([1.3]), torch.linspace(0.1, 0.3, 3)])


@pytest.mark.skipif(INTERPRETED, reason='17 GB')
def test_more_elements_than_32_bits_count():
    size = 2**31 + 16
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip('needs 20 GB of free memory')
    x = torch.zeros(size, dtype=torch.bfloat16, device=DEVICE)
    x[-16:] = torch.linspace(-4, 4, 16)
    parameters = [p.to(DEVICE) for p in given('pssilu')]
    value = gpu.value('pssilu', x, *parameters, 0)
    assert torch.equal(value[-16:], gpu.value('pssilu', x[-16:], *parameters, 0)) and not value[:-16].any()
    del value
    found, expected = (gpu.gradients('pssilu', part, part, *parameters, 0, True) for part in (x, x[-16:]))
    assert torch.equal(found[0][-16:], expected[0])
    torch.testing.assert_close(found[1:], expected[1:])  # all other terms are 0


@pytest.mark.parametrize('name, parameters', [
    *PARAMETERS.items(), ('prelu0', (0.,)), ('preluplus', (0.,)), ('psilu', (0.,)), ('reblu', (-1.,)),
    ('pssilu', (1., 0.)), ('pssilu', (0., 0.5)), ('pssilu', (1., 32.9)), ('psoftplus', (0.,)), ('psilu', (1e9,)),
    ('pssilu', (-2.3, 0.3)),
], ids=str)
def test_infinity_nan_and_tails_as_the_reference_has_them(name, parameters):
    x = torch.tensor([INF, -INF, NAN, 0., 3e38, -3e38, 85., -85., 101., -101., 1e4, -1e4, 1e-40, -0., 1., -1.],
                     device=DEVICE)
    tensors = [torch.tensor([p], device=DEVICE) for p in parameters]
    alpha, beta = (*tensors, None)[:2]
    # float64, since the reference in float32 overflows on the way to values near the largest number; but ReBLU's own
    # formula cancels in float32
    dtype = torch.float32 if name == 'reblu' else torch.float64
    each = [torch.full(x.shape, p, dtype=dtype, device=DEVICE, requires_grad=True) for p in parameters]
    wide = x.to(dtype).requires_grad_()
    y = getattr(functional, name)(wide, *each, 0)
    expected = torch.autograd.grad(y.sum(), [wide, *each])
    torch.testing.assert_close(gpu.value(name, x, alpha, beta, 0), y.detach().float(), rtol=1e-5, atol=1e-36,
                               equal_nan=True)
    of_each = [p.detach().float() for p in each]
    found = gpu.gradients(name, torch.ones_like(x), x, *(*of_each, None)[:2], 0, True)
    for ours, right in zip(found, expected, strict=False):
        torch.testing.assert_close(ours, right.float(), rtol=1e-5, atol=1e-36, equal_nan=True)


# In the interpreter exp2 is exact, and conversion to bfloat16 cuts digits off instead of rounding.
BOUNDS = {torch.float32: 5, torch.float16: 0.52} if INTERPRETED else {torch.float32: 12, torch.bfloat16: 0.51}


@pytest.mark.parametrize('dtype', BOUNDS, ids=str)
@pytest.mark.parametrize('name', PARAMETERS)
def test_errors_in_units_in_the_last_place(name, dtype):
    worst = {}
    for given in accuracy.FORMULAS[name][1]:
        given = tuple(torch.tensor(p).item() for p in given)
        x = accuracy.grid(name, given, dtype, per_binade=16)
        x = x[:len(x) // 16 * 16]
        at, tensors = x.double().numpy(), [torch.tensor([p], device=DEVICE) for p in given]
        alpha, beta = (*tensors, None)[:2]
        x = x.to(DEVICE)
        results = (gpu.value(name, x, alpha, beta, 0),
                   gpu.gradients(name, torch.ones_like(x), x, alpha, beta, 0, False)[0])
        for what, ours, exact, moves in zip(
                ('value', 'gradient of x'), results, accuracy.reference(name, at, given)[:2],
                accuracy.sensitivity(name, at, given)[:2], strict=True):
            size = np.maximum(np.abs(exact), moves)
            error = np.abs(ours.double().cpu().numpy() - exact)
            known = (size > 1e-33) & (size < 0.999 * torch.finfo(dtype).max)
            units = (error / accuracy.spacing(size, dtype))[known].max()
            worst[what] = max(worst.get(what, 0), units)
            assert units <= BOUNDS[dtype], given
            assert error[size <= 1e-33].max(initial=0) <= 1e-34
    print(f'{name}, {dtype}: at most', ', '.join(f'{units:.3g} ulp ({what})' for what, units in worst.items()))


def test_sums_are_the_same_every_time():
    x = torch.randn(3, 5008).to(DEVICE)
    alpha, beta = (torch.tensor([p], device=DEVICE) for p in PARAMETERS['pssilu'])
    first, second = (gpu.gradients('pssilu', x, x, alpha, beta, 1, True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.skipif(INTERPRETED, reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
def test_a_recorded_graph_computes_the_same(dtype):
    x = torch.randn(2, 3, 64, 37, device=DEVICE).to(dtype)
    parameters = [p.to(DEVICE) for p in given('pssilu')]

    def results():
        return gpu.value('pssilu', x, *parameters, 1), *gpu.gradients('pssilu', x, x, *parameters, 1, True)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = results()
    x.copy_(torch.randn_like(x))
    parameters[0].fill_(0.7)
    graph.replay()
    assert all(map(torch.equal, recorded, results()))


@pytest.mark.skipif(INTERPRETED, reason='torch does not know the functions of the interpreter')
@pytest.mark.parametrize('name', PARAMETERS)
def test_the_function_uses_them(name):
    x = torch.randn(64, 32, device=DEVICE, requires_grad=True)
    parameters = [torch.tensor([p], device=DEVICE, requires_grad=True) for p in PARAMETERS[name]]
    function = getattr(functional, name)
    expected = torch.autograd.grad(function(x, *parameters).square().sum(), [x, *parameters])
    with kernels.use('fused'):
        ours = torch.autograd.grad(function(x, *parameters).square().sum(), [x, *parameters])
    torch.testing.assert_close(ours, expected)
