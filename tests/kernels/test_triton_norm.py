"""The Triton source of BatchNorm and activation against the modules, on a GPU, or with TRITON_INTERPRET=1 without one.

On a GPU only some of the cases run, since each compiles a kernel of its own; see test_triton.py.
"""
import copy
import os

import pytest
import torch
from torch import nn

pytest.importorskip('triton')

from timm_paf import kernels
from timm_paf.activations import ACTIVATIONS, functional
from timm_paf.kernels import batch_norm_act, gpu_norm, norm

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if INTERPRETED else 'cuda'
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
SHAPES = [(2, 64, 16, 16), (3, 40, 7, 7), (2, 5, 9, 9), (70, 1, 8, 8), (130, 3, 1, 1)][:None if INTERPRETED else 1]
DTYPES = [torch.bfloat16, torch.float32][:None if INTERPRETED else 1]
LAYERS = {
    **{name: lambda cls=cls: cls() for name, cls in ACTIVATIONS.items()},
    'pssilu': lambda: ACTIVATIONS['pssilu'](alpha=1.7, beta=0.2), 'prelu0': lambda: ACTIVATIONS['prelu0'](alpha=0.3),
    'reblu': lambda: ACTIVATIONS['reblu'](alpha=0.6), 'relu': lambda: nn.ReLU(inplace=True), 'silu': nn.SiLU}


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """In the interpreter, tensors of the CPU take the way of those on a GPU."""
    monkeypatch.setattr(norm, '_on_cpu', lambda x: False)
    if INTERPRETED:  # a CPU rounds the statistics of half precision; a GPU does not
        function = torch.batch_norm_update_stats
        monkeypatch.setattr(torch, 'batch_norm_update_stats', lambda x, *others: function(x.float(), *others))


def problem(name, shape, dtype, *, training, shortcut, last, **settings):
    """An activation, one or two norms, x, and the shortcut."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(shape[1], **settings).train(training) for _ in range(2)]
    with torch.no_grad():
        for each in norms:
            each.weight.normal_(), each.bias.normal_()
            if each.running_mean is not None:
                each.running_mean.normal_(), each.running_var.uniform_(0.5, 2)
    tensors = [(torch.randn(shape) * 2 + 3).to(DEVICE, dtype) for _ in range(2)]
    if last:
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    for x in tensors:
        x.requires_grad_()
    act = LAYERS[name]().to(DEVICE)
    norms = [each.to(DEVICE).requires_grad_(training) for each in norms]
    act.requires_grad_(training)
    return act, norms, tensors


def modules(act, norms, x, y, shortcut):
    z = norms[0](x)
    if shortcut:
        z = z + (norms[1](y) if shortcut == 'norm' else y)
    return act(z)


def results(function, act, norms, x, y, shortcut):
    """Value, gradients, buffers."""
    out = function(act, norms, x, y, shortcut)
    wanted = [x, *([y] if shortcut else []), *act.parameters(), *norms[0].parameters()]
    wanted += norms[1].parameters() if shortcut == 'norm' else []
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad), *norms[0].buffers()]


def one_pass(act, norms, x, y, shortcut):
    found = batch_norm_act(x, norms[0], act, y if shortcut else None, norms[1] if shortcut == 'norm' else None)
    assert type(found.grad_fn.next_functions[0][0]).__name__ != 'NativeBatchNormBackward0'
    return found


def compare(name, shape, dtype, *, training, shortcut, last, **settings):
    given = problem(name, shape, dtype, training=training, shortcut=shortcut, last=last, **settings)
    act, norms, (x, y) = given
    exact = [copy.deepcopy(act).double(), [copy.deepcopy(n).double() for n in norms],
             *(t.detach().double().requires_grad_() for t in (x, y))]
    with kernels.use('reference'):
        expected = results(modules, *exact, shortcut)
    found = results(one_pass, act, norms, x, y, shortcut)
    assert found[0].dtype == dtype and found[0].stride() == x.stride()
    rounding, terms = torch.finfo(dtype).eps, x.numel() // shape[1]
    for ours, right in zip(found, expected, strict=True):
        assert ours.shape == right.shape
        tolerance = 4 * rounding if right.shape == x.shape else 1e-4
        if right.shape == (shape[1],) and dtype != torch.float32:
            tolerance = rounding * terms  # sums of a gradient that is rounded, by the interpreter always downwards
        if dtype == torch.float32:
            tolerance = 1e-5
        error = (ours.double() - right).abs().max().item() if right.numel() else 0
        assert error <= tolerance * max(1, right.abs().max().item() if right.numel() else 0)


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_every_activation(name, training):
    if INTERPRETED:
        compare(name, (2, 5, 6, 7), torch.float32, training=training, shortcut='norm', last=False)
    compare(name, (2, 16, 4, 4), torch.bfloat16, training=training, shortcut=None, last=True)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('last', [False, True], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('shortcut', [None, 'tensor', 'norm'])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_sizes_layouts_and_shortcuts(training, shortcut, last, shape):
    for dtype in DTYPES:
        compare('pssilu', shape, dtype, training=training, shortcut=shortcut, last=last)


@pytest.mark.parametrize('settings', [{'track_running_stats': False}, {'eps': 0.1, 'momentum': 0.5}], ids=str)
def test_settings(settings):
    compare('pssilu', (2, 5, 9, 9), torch.float32, training=True, shortcut='norm', last=False, **settings)


def test_layouts_that_differ():
    act, norms, (x, y) = problem(
        'pssilu', (2, 16, 4, 4), torch.float32, training=False, shortcut='tensor', last=True)
    found = results(one_pass, act, norms, x, y.detach().contiguous().requires_grad_(), 'tensor')
    torch.testing.assert_close(found, results(one_pass, act, norms, x, y, 'tensor'), rtol=0, atol=0)
    assert found[1].stride() == x.stride()


@pytest.mark.parametrize('shape', [(2, 5, 9, 9), (3, 48, 7, 7)], ids=str)
@pytest.mark.parametrize('last', [False, True], ids=['contiguous', 'channels_last'])
def test_sums_are_the_same_every_time_and_places_may_have_64_bits(shape, last, monkeypatch):
    given = problem('pssilu', shape, torch.float32, training=True, shortcut='norm', last=last)
    first = results(one_pass, *given[:2], *given[2], 'norm')[:-3]  # without running statistics, which move
    init = gpu_norm._Tiles.__init__

    def wide(self, x):
        init(self, x)
        self.constants = (*self.constants[:2], True, *self.constants[3:])
    monkeypatch.setattr(gpu_norm._Tiles, '__init__', wide)
    second = results(one_pass, *given[:2], *given[2], 'norm')[:-3]
    assert all(map(torch.equal, first, second))


def test_a_second_derivative():
    act, norms, (x, y) = problem('pssilu', (2, 2, 3, 3), torch.float32, training=False, shortcut='norm', last=False)

    def second(function):
        (first,) = torch.autograd.grad(function(act, norms, x, y, 'norm').square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, y])
    torch.testing.assert_close(second(one_pass), second(modules))


def test_parameters_that_need_a_gradient_in_eval_mode():
    act, norms, (x, y) = problem('pssilu', (2, 2, 3, 3), torch.float32, training=False, shortcut='norm', last=False)
    norms[1].requires_grad_()
    found = batch_norm_act(x, norms[0], act, y, norms[1])
    gradients = torch.autograd.grad(found.sum(), [x, *norms[1].parameters()])
    torch.testing.assert_close(
        gradients, torch.autograd.grad(modules(act, norms, x, y, 'norm').sum(), [x, *norms[1].parameters()]))


def test_without_gradients():
    act, norms, (x, _) = problem('pssilu', (2, 2, 3, 3), torch.float32, training=False, shortcut=None, last=False)
    act.requires_grad_()
    with torch.no_grad():
        y = functional.pssilu(norms[0](x), act.alpha, act.beta)
        torch.testing.assert_close(batch_norm_act(x, norms[0], act), y)
