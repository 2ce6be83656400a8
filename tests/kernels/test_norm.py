"""BatchNorm and activation in one pass: the numbers of the modules, with less memory."""
import copy

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import timm_paf
from timm_paf import kernels
from timm_paf.activations import ACTIVATIONS, PSSiLU
from timm_paf.kernels import batch_norm_act


class Block(nn.Module):
    """A norm, an activation and a shortcut with or without a norm of its own, in one call or as modules."""

    def __init__(self, act, *, shortcut='none', channels=5, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(channels, **settings)
        self.norm2 = nn.BatchNorm2d(channels, **settings) if shortcut == 'norm' else None
        self.act, self.shortcut, self.whole = act, shortcut, True
        with torch.no_grad():
            for tensor in self.parameters():
                if tensor.shape == (channels,):
                    tensor.normal_()

    def forward(self, x):
        shortcut = None if self.shortcut == 'none' else x.flip(1).mul(2)
        if self.whole:
            return batch_norm_act(x, self.norm, self.act, shortcut, self.norm2)
        y = self.norm(x)
        if shortcut is not None:
            y = y + (shortcut if self.norm2 is None else self.norm2(shortcut))
        return self.act(y)

    def modules_called(self):
        """A copy that calls its modules one by one."""
        copied = copy.deepcopy(self)
        copied.whole = False
        return copied


def pssilu():
    return PSSiLU(alpha=1.7, beta=0.2)


def images(*shape, dtype=torch.float32, channels_last=False):
    x = (torch.randn(shape or (4, 5, 9, 9), generator=torch.Generator().manual_seed(1)) * 2 + 3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def everything(model, x):
    """Output, gradients and buffers after one training step's passes."""
    x = x.clone().requires_grad_()
    y = model(x)
    gradients = torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()])
    return [y.detach(), *gradients, *model.buffers()]


@pytest.fixture
def norms_called(monkeypatch):
    """Sizes of the inputs of nn.BatchNorm2d.forward."""
    calls, forward = [], nn.BatchNorm2d.forward

    def counting(self, x):
        calls.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(nn.BatchNorm2d, 'forward', counting)
    return calls


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('channels_last', [False, True], ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('shortcut', ['none', 'tensor', 'norm'])
@pytest.mark.parametrize('settings', [
    {}, {'affine': False}, {'track_running_stats': False}, {'momentum': 0.3, 'eps': 0.01}], ids=str)
def test_values_gradients_and_statistics_are_those_of_the_modules(
        settings, shortcut, channels_last, dtype, norms_called):
    block = Block(pssilu(), shortcut=shortcut, **settings)
    if dtype == torch.float64:
        block.double()
    plain = block.modules_called()
    x = images(dtype=dtype, channels_last=channels_last)
    found = everything(block, x)
    one_pass = dtype != torch.bfloat16 or settings.get('affine', True)
    assert (not norms_called) == one_pass
    expected = everything(plain, x)
    assert torch.equal(found[0], expected[0]) and found[0].stride() == expected[0].stride()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('act', [
    *ACTIVATIONS, 'relu', 'silu', 'elu', *(pytest.param((name, 5), id=f'{name} per channel') for name in ('psilu',))])
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_every_activation(act, training):
    name, channels = act if isinstance(act, tuple) else (act, 1)
    layer = ACTIVATIONS[name](num_parameters=channels) if name in ACTIVATIONS else timm.layers.create_act_layer(
        name, inplace=True)
    block = Block(layer, shortcut='norm').train(training)
    plain, x = block.modules_called(), images()
    torch.testing.assert_close(everything(block, x), everything(plain, x))


def no_momentum(block):
    block.norm.momentum = None


def subclass(block):
    block.norm.__class__ = type('Other', (nn.BatchNorm2d,), {})


def frozen_norm(block):
    block.norm2.eval()


def patched(block):
    block.norm.forward = block.norm.forward


def hooked(which, kind):
    def change(block):
        module = getattr(block, which)
        hook = {'forward': lambda m, x, y: 2 * y, 'forward_pre': lambda m, x: (2 * x[0],),
                'full_backward': lambda m, dx, dy: (2 * dx[0],)}[kind]
        getattr(module, f'register_{kind}_hook')(hook)
    return change


CALLS_MODULES = {
    'cumulative average': no_momentum, 'subclass of BatchNorm': subclass, 'one norm frozen': frozen_norm,
    'forward replaced': patched,
    **{f'{kind} hook on {which}': hooked(which, kind) for which in ('norm', 'norm2', 'act') for kind in (
        'forward', 'forward_pre', 'full_backward') if (
            which, kind) != ('norm', 'full_backward')}}  # which the sum in place makes an error, as in timm


@pytest.mark.parametrize('change', CALLS_MODULES.values(), ids=CALLS_MODULES)
def test_unusual_modules_are_called(change, norms_called):
    block = Block(pssilu(), shortcut='norm')
    plain, x = block.modules_called(), images()
    change(block), change(plain)
    found = everything(block, x)
    assert len(norms_called) == 2
    torch.testing.assert_close(found, everything(plain, x))


@pytest.mark.parametrize('norm', [nn.Identity(), nn.Dropout().eval()], ids=['identity', 'dropout'])
def test_a_norm_that_returns_its_input_leaves_it_unchanged(norm):
    x, shortcut = images().requires_grad_(), images()
    before = x.detach().clone()
    y = batch_norm_act(x, norm, nn.ReLU(), shortcut)
    torch.testing.assert_close(y, (before + shortcut).relu())
    assert torch.equal(x, before)


def test_a_hook_on_all_modules_sees_them():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: seen.append(type(module)))
    try:
        Block(pssilu())(images())
    finally:
        handle.remove()
    assert seen == [nn.BatchNorm2d, PSSiLU, Block]


class Subclass(torch.Tensor):
    pass


def under_fake_tensors(block, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return block(mode.from_tensor(x))


def with_reference(block, x):
    with kernels.use('reference'):
        return block(x)


SITUATIONS = {
    'subclass of tensors': lambda block, x: block(x.as_subclass(Subclass)),
    'fake tensors': under_fake_tensors,
    'reference': with_reference,
    'torch.func': lambda block, x: torch.func.vjp(block, x)[0],
    'forward mode': lambda block, x: torch.func.jvp(block, (x,), (x,))[0],
    'jit trace': lambda block, x: torch.jit.trace(block, x, check_trace=False)(x),
    'FX': lambda block, x: symbolic_trace(block)(x),
    'no gradient': torch.no_grad()(lambda block, x: block(x)),
    'compiled': lambda block, x: torch.compile(block, backend='eager', fullgraph=True)(x),
}


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('run', SITUATIONS.values(), ids=SITUATIONS)
def test_unusual_situations_call_the_modules(run, norms_called):
    torch._dynamo.reset()
    block, x = Block(pssilu(), track_running_stats=False), images()
    y = run(block, x)
    assert norms_called
    if type(y) is torch.Tensor:
        torch.testing.assert_close(y, block.modules_called()(x))


@pytest.mark.parametrize('x, error', [
    (images(1, 5, 1, 1), 'more than 1 value per channel'), (images(2, 4, 3, 3), 'running_mean should contain 4'),
    (images(2, 5, 3), '4D input')], ids=['one value', 'channels', 'rank'])
def test_errors_are_those_of_the_modules(x, error):
    with pytest.raises((ValueError, RuntimeError), match=error):
        Block(pssilu())(x)


@pytest.mark.parametrize('shortcut', ['none', 'tensor', 'norm'])
def test_derivatives_of_derivatives(shortcut):
    block = Block(pssilu(), shortcut=shortcut, channels=2).double()
    names = [name for name, _ in block.named_parameters()]
    x = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))
    inputs = (x, *(p.detach().clone().requires_grad_() for p in block.parameters()))
    assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


def test_sums_for_alpha_are_not_computed_for_an_attack(monkeypatch):
    asked, gradients = [], kernels.cpu.gradients
    monkeypatch.setattr(kernels.cpu, 'gradients', lambda *args: (asked.append(args[-1]), gradients(*args))[1])
    block, x = Block(pssilu()), images().requires_grad_()
    torch.autograd.grad(block(x).sum(), x)
    block(x).sum().backward()
    assert asked == [False, True]


def test_a_backward_pass_after_the_weights_have_changed_is_an_error():
    block = Block(pssilu())
    loss = block(images()).sum()
    with torch.no_grad():
        block.norm.weight.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_checkpointing():
    block, x = Block(pssilu(), shortcut='norm', track_running_stats=False), images().requires_grad_()
    inputs = [x, *block.parameters()]
    found = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).square().sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(block(x).square().sum(), inputs))


def kept_bytes(model, x):
    """Bytes that stay allocated after a forward pass, without the output."""
    model(x)  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = model(x)
    total = sum(e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == '[memory]')
    return total - y.untyped_storage().nbytes()


@pytest.mark.parametrize('arch', [
    'wrn10_2', 'resnet18', 'vgg11_bn', pytest.param('resnet50', marks=pytest.mark.slow),
    pytest.param('preact_resnet18', marks=pytest.mark.slow)])
def test_a_network_keeps_what_one_with_relu_in_place_keeps(arch):
    def network(act):
        torch.manual_seed(0)
        return timm.create_model(f'{arch}_{act}').train()
    x = torch.rand(4, 3, 32, 32)
    relu, ours = kept_bytes(network('relu'), x), kept_bytes(network('pssilu'), x)
    with kernels.use('reference'):
        modules = kept_bytes(network('pssilu'), x)
    print(f'{arch}: {relu} with ReLU in place, {ours} with PSSiLU, {modules} with its modules')  # for docs/performance
    assert ours <= relu * 1.01 and modules >= relu * 1.3


@pytest.mark.parametrize('settings', [
    {}, {'drop_path_rate': 0.5}, {'drop_block_rate': 0.1}, {'avg_down': True}, {'zero_init_last': False},
    {'aa_layer': BlurPool2d}, {'block_args': {'attn_layer': 'se'}}], ids=str)
@pytest.mark.parametrize('block, training', [(BasicBlock, True), (BasicBlock, False), (Bottleneck, True)], ids=[
    'basic-train', 'basic-eval', 'bottleneck-train'])
def test_resnets_compute_what_timms_compute(block, training, settings):
    def step(cls):
        torch.manual_seed(0)
        model = cls(block, (1, 1, 2, 1), num_classes=10, channels=(8, 8, 16, 16), act_layer=timm_paf.shared(
            'pssilu', alpha=2., beta=0.2), **settings).double().train(training)
        torch.manual_seed(1)
        return [*model.state_dict()], everything(model, torch.rand(4, 3, 64, 64, dtype=torch.float64))
    (names, found), (theirs, expected) = step(timm_paf.models.ImageNetResNet), step(ResNet)
    assert names == theirs
    torch.testing.assert_close(found, expected)
