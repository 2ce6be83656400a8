"""The networks against other implementations and closed forms: sizes, initial weights, strides, logits."""
import itertools
import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from tests.models.conftest import randomised
from timm_paf import paf_parameters, shared
from timm_paf.activations import functional


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def conv(kernel, *channels):
    """Parameters of a chain of convolutions."""
    return sum(kernel * kernel * a * b for a, b in itertools.pairwise(channels))


def preact_parameters(widths, blocks):
    total = conv(3, 3, widths[0]) + 2 * widths[-1] + 10 * widths[-1] + 10  # stem, last norm, classifier
    for previous, chs in itertools.pairwise(widths):
        total += conv(3, previous, chs) + (conv(1, previous, chs) if chs != previous else 0) + 2 * previous
        total += (2 * blocks - 1) * (conv(3, chs, chs) + 2 * chs)
    return total


PARAMETERS = {
    **{f'wrn{depth}_{k}': preact_parameters((16, 16 * k, 32 * k, 64 * k), (depth - 4) // 6) for depth, k in (
        (10, 2), (28, 4), (28, 10), (34, 10), (34, 20), (70, 16))},
    'preact_resnet18': preact_parameters((64, 64, 128, 256, 512), 2),
    # timm's networks with another stem and another classifier
    'resnet18': 11_689_512 - conv(7, 3, 64) + conv(3, 3, 64) - 513_000 + 5130,
    'resnet34': 21_797_672 - conv(7, 3, 64) + conv(3, 3, 64) - 513_000 + 5130,
    'resnet50': 25_557_032 - conv(7, 3, 64) + conv(3, 3, 64) - 2_049_000 + 20_490,
    'resnet18_224': 11_689_512, 'resnet50_224': 25_557_032,
}


@pytest.mark.parametrize('arch', [*PARAMETERS, *(f'vgg{d}{bn}' for d in (11, 13, 16, 19) for bn in ('', '_bn'))])
def test_number_of_parameters(arch):
    with torch.device('meta'):
        expected = PARAMETERS.get(arch)
        if expected is None:
            convolutions = torchvision.models.get_model(arch).features
            expected = sum(p.numel() for p in convolutions.parameters()) + 5130
        assert sum(p.numel() for p in timm.create_model(f'{arch}_relu').parameters()) == expected


@pytest.mark.parametrize('name', ['vgg11', 'vgg13_bn'])
def test_vgg_is_torchvisions_up_to_the_head(name):
    model, other = randomised(create(f'{name}_relu')), torchvision.models.get_model(name).eval().features
    own = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    theirs = [m for m in other if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    for a, b in zip(own, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(model.forward_features(x), other(x))


@pytest.mark.parametrize('name, act', [('resnet18', 'relu'), ('resnet50', 'pssilu')])
def test_resnet_at_224_is_timms(name, act):
    model = randomised(create(f'{name}_224_{act}'))
    other = timm.create_model(name, act_layer=act if act == 'relu' else shared(act)).eval()
    other.load_state_dict(model.state_dict())
    assert list(other.state_dict()) == list(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def preact_resnet(state, x, act, layers):
    """Pre-activation ResNet as a function of its weights, written from He et al., arXiv 1603.05027, figure 4(e)."""
    def norm(x, name):
        return F.batch_norm(
            x, *(state[f'{name}.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias')))

    x = F.conv2d(x, state['conv1.weight'], padding=1)
    for stage, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            name, stride = f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1
            y = act(norm(x, f'{name}.norm1'))
            if f'{name}.shortcut.weight' in state:
                x = F.conv2d(y, state[f'{name}.shortcut.weight'], stride=stride)
            y = F.conv2d(y, state[f'{name}.conv1.weight'], stride=stride, padding=1)
            x = x + F.conv2d(act(norm(y, f'{name}.norm2')), state[f'{name}.conv2.weight'], padding=1)
    return F.linear(act(norm(x, 'norm')).mean((2, 3)), state['fc.weight'], state['fc.bias'])


@pytest.mark.parametrize('name, layers', [
    ('preact_resnet18', (2, 2, 2, 2)), ('wrn10_2', (1, 1, 1))])
def test_preactivation_networks_against_a_plain_function(name, layers):
    model = randomised(create(f'{name}_pssilu', act_kwargs=dict(alpha=2., beta=0.2)))
    alpha, beta = paf_parameters(model).values()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = preact_resnet(model.state_dict(), x, lambda x: functional.pssilu(x, alpha, beta), layers)
        assert_close(model(x), expected)


def test_cifar_resnet_is_timms_with_a_small_stem():
    model = randomised(create('resnet18_relu'))
    other = timm.create_model('resnet18', num_classes=10).eval()
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    other.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


@pytest.mark.parametrize('name, strides', [
    ('resnet18', (4,)), ('wrn10_2', (2, 1)), ('resnet18_224', (16,)),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ('resnet18', (2,)), ('resnet50', (2,)), ('preact_resnet18', (4, 2)), ('resnet18_224', (8,))])])
def test_dilated_network_holds_the_strided_one(name, strides):
    # convolutions that are dilated instead of strided compute the same at the pixels that the strided ones have
    plain = randomised(create(f'{name}_pssilu')).double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.forward_features(x)
        for stride in strides:
            model = create(f'{name}_pssilu', output_stride=stride).double()
            model.load_state_dict(plain.state_dict())
            features = model.forward_features(x)
            step = features.shape[-1] // expected.shape[-1]
            assert features.shape[-1] == 32 // stride == 32 // model.feature_info[-1]['reduction'] and step > 1
            assert_close(features[..., ::step, ::step], expected)


@pytest.mark.parametrize('name, settings, message', [
    ('wrn10_2', dict(output_stride=8), 'output_stride = 8: expected 4, 2 or 1'),
    ('preact_resnet18', dict(output_stride=32), 'output_stride = 32: expected 8, 4 or 2'),
    ('resnet18', dict(output_stride=32), 'output_stride = 32: expected 8, 4 or 2'),
    ('resnet18_224', dict(output_stride=4), 'output_stride = 4: expected 32, 16 or 8'),
    ('vgg11', dict(output_stride=8), 'output_stride = 8: expected 32'), ('wrn10_2', dict(depth=27), 'depth = 27'),
    ('preact_resnet18', dict(layers=(2, 2, 2)), 'layers'), ('vgg11', dict(channels=(64, 128)), 'channels'),
])
def test_wrong_arguments_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(f'{name}_relu', **settings)


@pytest.mark.parametrize('name', ['wrn10_2', 'preact_resnet18', 'resnet18', 'resnet50_224', 'vgg11_bn'])
def test_initial_weights(name):
    model = create(f'{name}_pssilu')
    for label, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            count = module.weight.numel()
            deviation = module.weight.std().item() / math.sqrt(2 / fan_out)
            assert abs(deviation - 1) < 5 / math.sqrt(2 * count), label  # five standard errors
            assert abs(module.weight.mean().item()) < 5 * math.sqrt(2 / fan_out / count), label
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            last = name == 'resnet50_224' and label.endswith('bn3')  # timm starts its blocks as identities
            assert (module.weight == (0 if last else 1)).all() and not module.bias.any()
    if name.startswith('vgg'):
        assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)
    if not name.startswith('resnet'):
        assert not model.fc.bias.any()


@pytest.mark.parametrize('name', ['wrn10_2', 'preact_resnet18', 'resnet18', 'resnet18_224'])
def test_stochastic_depth_grows_linearly(name):
    with torch.device('meta'):
        model = timm.create_model(f'{name}_relu', drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if hasattr(m, 'drop_prob')]  # the first block has none
    blocks = len(rates) + 1
    assert blocks == (3 if name == 'wrn10_2' else 8)
    assert rates == pytest.approx([0.3 * index / (blocks - 1) for index in range(1, blocks)])


def test_dropout_before_the_classifier():
    model = create('wrn10_2_relu', drop_rate=0.5)
    features = torch.ones(1, model.num_features, 1, 1)
    assert set(model.train().forward_head(features, pre_logits=True).unique().tolist()) == {0., 2.}
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), features.flatten(1))
