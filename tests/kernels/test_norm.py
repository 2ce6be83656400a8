"""Recomputed BatchNorm: the same numbers with less memory."""
import copy

import pytest
import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from timm_paf import kernels
from timm_paf.activations import PSSiLU
from timm_paf.kernels import RecomputedBatchNorm2d, recompute_batch_norm

pytestmark = pytest.mark.skipif(
    not hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'), reason='torch is too old')


def kept_bytes(model, x):
    """Bytes that stay allocated after a forward pass, without the output."""
    model(x)  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = model(x)
    total = sum(e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == '[memory]')
    return total - y.untyped_storage().nbytes()


def pair(**settings):
    """Two equal networks, the second one with the option."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, **settings)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias):
            if tensor is not None:
                tensor.normal_()
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), norm, PSSiLU(alpha=1.7, beta=0.2), nn.Conv2d(5, 2, 3))
    return plain, recompute_batch_norm(copy.deepcopy(plain))


def everything(model, x):
    """Output, gradients and buffers after one training step's passes."""
    x = x.clone().requires_grad_()
    y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    return [y.detach(), *gradients, *model.buffers()]


@pytest.mark.parametrize('mode, dtype', [('reference', torch.float64), ('fused', torch.float32)], ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('settings', [
    {}, {'affine': False}, {'track_running_stats': False}, {'momentum': None}], ids=str)
def test_values_gradients_and_statistics_are_equal(settings, training, mode, dtype):
    plain, ours = (model.to(dtype).train(training) for model in pair(**settings))
    assert type(ours[1]) is RecomputedBatchNorm2d and list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 9, 9, dtype=dtype) + 3
    with kernels.use(mode):
        expected = everything(plain, x)
        torch.testing.assert_close(everything(ours, x), expected, rtol=100 * torch.finfo(dtype).eps, atol=1e-4 * (
            dtype == torch.float32))


@pytest.mark.parametrize('arch', [
    'wrn10_2', 'resnet18', 'vgg11_bn', pytest.param('resnet50', marks=pytest.mark.slow),
    pytest.param('preact_resnet18', marks=pytest.mark.slow)])
def test_a_network_keeps_what_one_with_relu_in_place_keeps(arch):
    def network(act, **kwargs):
        torch.manual_seed(0)
        return timm.create_model(f'{arch}_{act}', **kwargs).train()
    x = torch.rand(4, 3, 32, 32)
    relu = kept_bytes(network('relu'), x)
    ours = kept_bytes(network('pssilu', fuse_bn_act=True), x)
    without = kept_bytes(network('pssilu'), x)
    print(f'{arch}: {relu} with ReLU in place, {ours} with fuse_bn_act, {without} without')  # for docs/performance
    assert ours <= relu * 1.01 and without >= relu * 1.3


def test_a_network_trains_alike():
    def steps(**kwargs):
        torch.manual_seed(0)
        model = timm.create_model('wrn10_2_pssilu', in_chans=1, **kwargs)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        x, y = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.state_dict()
    torch.testing.assert_close(steps(fuse_bn_act=True), steps(), rtol=1e-3, atol=1e-4)


class Block(nn.Module):
    """A residual block that adds in its own way."""

    def __init__(self, add, shortcut=None):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.act, self.add, self.shortcut = PSSiLU(alpha=1.7, beta=0.2), add, shortcut or nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        shortcut = self.shortcut(x)
        return self.act(self.add(y, shortcut))


def downsample():
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


SUMS = {
    'shortcut': (Block(torch.Tensor.add_), True),
    'two norms': (Block(torch.Tensor.add_, downsample()), True),
    'out of place': (Block(torch.add), False),
    'a shortcut that is not kept': (Block(torch.Tensor.add_, nn.Sequential(nn.Tanh(), nn.MaxPool2d(3, 1, 1))), False),
    'a factor': (Block(lambda y, x: y.add_(x, alpha=0.5)), False),
    'another operation': (Block(torch.Tensor.sub_), False),
    'a number': (Block(lambda y, x: y.add_(1)), False),
    'twice': (Block(lambda y, x: y.add_(x).add_(x)), False),
    'twice itself': (Block(lambda y, x: y.add_(y)), False),
    'of one channel': (Block(lambda y, x: y.add_(x[:, :1])), False),
    'a shortcut changed after the branch has read it': (Block(lambda y, x: y.add_(x.clone().mul_(2))), False),
    'a norm changed in place': (Block(lambda y, x: y.add_(x.relu_()), downsample()), False),
}


@pytest.mark.parametrize('name', SUMS)
def test_a_residual_sum_is_recomputed_or_kept(name):
    plain, recomputed = copy.deepcopy(SUMS[name][0]).double(), SUMS[name][1]
    ours = recompute_batch_norm(copy.deepcopy(plain))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(everything(ours, x), everything(plain, x))
    assert torch.autograd.gradgradcheck(ours, (x,))
    # one tensor less for each activation: always for the first one, and for the sum where it can be made again
    saved = kept_bytes(plain, x) - kept_bytes(ours, x)
    assert round(saved / x.untyped_storage().nbytes()) == (2 if recomputed else 1)


@pytest.mark.parametrize('settings', [{}, {'drop_path_rate': 0.5}, {'zero_init_last': False}], ids=str)
def test_resnets_have_the_gradients_of_the_plain_ones(settings):
    def step(**kwargs):
        torch.manual_seed(0)
        model = timm.create_model('resnet18_pssilu', num_classes=10, **settings, **kwargs).double()
        torch.manual_seed(1)
        return everything(model, torch.rand(4, 3, 16, 16, dtype=torch.float64))
    torch.testing.assert_close(step(fuse_bn_act=True), step())


def test_a_backward_pass_after_the_weights_have_changed_is_an_error():
    _, ours = pair()
    loss = ours(torch.randn(2, 3, 6, 6)).sum()
    with torch.no_grad():
        ours[1].weight.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_checkpointing_compilation_export_and_scripts():
    plain, ours = pair()
    x = torch.randn(2, 3, 6, 6)
    def checkpointed(model):
        y = torch.utils.checkpoint.checkpoint(model[:3], x, use_reentrant=False)
        return torch.autograd.grad(y.square().sum(), list(model[:3].parameters()))
    torch.testing.assert_close(checkpointed(ours), checkpointed(plain))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x))
    exported = torch.export.export(ours.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), ours(x))


@pytest.mark.filterwarnings('ignore:`torch.jit.*:FutureWarning', 'ignore:.*torch.jit.*is deprecated')
def test_torchscript():
    _, ours = pair()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.jit.script(ours.eval())(x), ours(x))
    torch.testing.assert_close(torch.jit.trace(ours.eval(), x)(x), ours(x))
