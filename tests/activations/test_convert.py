"""Conversion of networks: places that are replaced, places that are not, and the preserved function."""
import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.activations.networks import build, output_of, pafs, places
from timm_paf import convert_activations, paf_parameters
from timm_paf.activations import ParametricActivation, PSiLU, PSSiLU


class Plain(nn.ReLU):
    """A subclass of ReLU."""


class QuickGELU(nn.Module):
    """An activation written by hand, as in transformers."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize('name, activation, count', [
    ('resnet18', 'prelu0', 17), ('resnet18', 'preluplus', 17), ('resnet18', 'reblu', 17), ('vgg11', 'prelu0', 10),
    ('test_efficientnet', 'psilu', None), ('densenet121', 'prelu0', None), ('hrnet_w18_small', 'preluplus', None),
    ('test_efficientnet_ln', 'psilu', None), ('nf_resnet26', 'prelu0', None), ('mobilenetv1_100', 'reblu', None),
])
def test_function_is_preserved(name, activation, count):
    kwargs = {'act_layer': 'relu'} if name == 'mobilenetv1_100' else {}
    model = build(name, **kwargs)
    before = output_of(model)
    report = convert_activations(model, activation)
    assert count is None or len(report.replaced) == count
    assert len(pafs(model)) == report.modules == 1 and report.max_deviation < 1e-6
    assert not [m for m in model.modules() if type(m) in (nn.ReLU, nn.SiLU)]
    torch.testing.assert_close(output_of(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name, size', [
    ('swin_tiny_patch4_window7_224', 224), ('vgg11_bn', 64), ('maxvit_pico_rw_256', 256), ('nfnet_l0', 64),
    ('dm_nfnet_f0', 64), ('mixer_s32_224', 224), ('vit_tiny_patch16_224', 224), ('mobilenetv3_small_050', 64),
    ('convnext_atto', 64), ('xcit_nano_12_p16_224', 224), ('ghostnet_050', 64), ('poolformer_s12', 64),
])
def test_families_of_every_kind_convert(name, size):
    """On the meta device, for the structure; the next test compares outputs."""
    with torch.device('meta'):
        model = timm.create_model(name)
    report = convert_activations(model, 'pssilu', preserve=False)
    assert len(report.replaced) >= 4 and len(pafs(model)) == 1
    assert not [item for item in report.left if item.reason == 'not matched']
    assert all(p.is_meta for p in paf_parameters(model).values())
    assert model(torch.zeros(1, 3, size, size, device='meta')).shape == (1, 1000)


@pytest.mark.parametrize('name, activation, deviation', [
    ('vit_tiny_patch16_224', 'pssilu', 0.0140), ('vgg11_bn', 'psoftplus', 0.0070), ('resnet18', 'pssilu', 0.0028),
])
def test_converted_network_stays_near(name, activation, deviation):
    """The untrained network computes nearly the same, and less so when the parameters start elsewhere."""
    size = 224 if 'vit' in name else 64
    model = build(name)
    before = output_of(model, size)
    other = copy.deepcopy(model)
    report = convert_activations(model, activation)
    convert_activations(other, activation, preserve=False)
    assert 0 < report.max_deviation < deviation
    near, far = ((output_of(m, size) - before).abs().max() for m in (model, other))
    assert near < 0.5 * far


@pytest.mark.parametrize('sharing, modules', [('network', 1), ('stage', 5), ('layer', 17), ('channel', 17)])
def test_sharing(sharing, modules):
    model = build('resnet18')
    before = output_of(model)
    report = convert_activations(model, 'prelu0', sharing=sharing)
    assert report.modules == len(pafs(model)) == modules
    shapes = {name: tuple(p.shape) for name, p in paf_parameters(model).items()}
    if sharing == 'channel':
        assert shapes['act1.alpha'] == shapes['layer1.0.act2.alpha'] == (64,)
        assert shapes['layer4.1.act2.alpha'] == (512,)
        with torch.no_grad():  # the channels are those of the convolution, not another dimension of that size
            model.layer4[1].act2.alpha[7] = 1.
        x = -torch.rand(2, 512, 3, 3)
        assert torch.equal(model.layer4[1].act2(x).nonzero()[:, 1].unique(), torch.tensor([7]))
        model.layer4[1].act2.alpha.data.zero_()
    else:
        assert set(shapes.values()) == {(1,)}
    if sharing == 'stage':
        assert list(shapes) == ['act1.alpha', *(f'layer{i}.0.act1.alpha' for i in range(1, 5))]
    torch.testing.assert_close(output_of(model), before)


def test_deviation_counts_the_slopes_that_one_value_cannot_hold():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.PReLU(2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0., 0.5]))
    report = convert_activations(model, 'prelu0')
    assert model[1].alpha.item() == pytest.approx(0.25)
    assert report.max_deviation == pytest.approx(8 * 0.25)


def test_aliases_stay_aliases():
    model = nn.Module()
    model.act = nn.ReLU()
    model.body = nn.Sequential(nn.Linear(2, 2), model.act, nn.ReLU())
    report = convert_activations(model, 'pssilu', sharing='layer')
    assert places(report) == ['act', 'body.1', 'body.2']
    assert model.act is model.body[1] and model.act is not model.body[2]
    assert [item.group for item in report.replaced] == ['act', 'act', 'body.2']


def test_torchs_fused_transformer_layer_runs_the_new_activation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(x)
        report = convert_activations(layer, 'prelu0')
        assert places(report) == ['activation']
        torch.testing.assert_close(layer(x), before)
        next(iter(paf_parameters(layer).values())).fill_(2.)
        assert not torch.allclose(layer(x), before, atol=1e-3)


def test_one_parametric_activation_becomes_another():
    model = nn.Sequential(nn.Linear(2, 2), PSiLU(alpha=2.5))
    report = convert_activations(model, 'pssilu', match=PSiLU)
    assert isinstance(model[1], PSSiLU) and report.max_deviation < 1e-4
    assert model[1].alpha.item() == pytest.approx(2.5, rel=1e-3)


def test_settings_go_first_and_placement_is_the_models():
    model = build('resnet18').to(torch.bfloat16).train()
    report = convert_activations(model, 'PSSiLU', alpha=3., learnable={'beta': False})
    (module,) = pafs(model)
    assert module.alpha.item() == 3. and list(paf_parameters(model)) == ['act1.alpha']
    assert module.alpha.dtype == torch.bfloat16 and module.training
    assert report.replaced[0].values['alpha'] == 3. and report.activation == 'pssilu'
    assert 'pssilu(alpha=3, beta=1e-08)' in str(report)


def hooked():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[1].register_forward_hook(lambda *_: None)
    return model


def distributed():
    torch.distributed.init_process_group('gloo', rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        return nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('model, arguments, error, message', [
    (lambda: nn.Linear(2, 2), ['pssilu'], ValueError, 'Linear has nothing to convert'),
    (lambda: nn.Sequential(nn.Tanh()), ['pssilu'], ValueError, r'Activations found: Tanh\(\)'),
    (lambda: nn.ReLU(), ['pssilu'], ValueError, 'is itself the activation'),
    (lambda: nn.Sequential(nn.ReLU()), ['pssilo'], ValueError, 'did you mean pssilu'),
    (lambda: nn.Sequential(nn.ReLU()), ['softplus'], ValueError, 'has no parameters'),
    (lambda: torch.jit.script(nn.Sequential(nn.ReLU())), ['pssilu'], TypeError, 'TorchScript'),
    (lambda: F.relu, ['pssilu'], TypeError, 'expected an nn.Module'),
    (hooked, ['pssilu'], ValueError, '1 = .* has hooks'),
    (distributed, ['pssilu'], TypeError, 'before it is wrapped'),
], ids=['nothing', 'gates only', 'no container', 'name', 'reference', 'script', 'function', 'hooks', 'DDP'])
def test_what_cannot_be_converted_says_so(model, arguments, error, message):
    with pytest.raises(error, match=message):
        convert_activations(model(), *arguments)


@pytest.mark.parametrize('settings, error, message', [
    (dict(sharing='block'), ValueError, 'expected one of network, stage, layer, channel'),
    (dict(match='relu'), TypeError, 'expected a type, a tuple of types, or a predicate'),
    (dict(beta=1.5), ValueError, r'expected 0 <= \|beta\|'),
    (dict(sharing='channel'), ValueError, 'pass example_input'),
    (dict(match=lambda m: isinstance(m, (nn.ReLU, nn.Softmax))), ValueError, r'softmax = Softmax\(dim=1\)'),
    (dict(match=lambda m: isinstance(m, (nn.ReLU, nn.Bilinear))), ValueError, 'bilinear = .*cannot be imitated'),
], ids=['sharing', 'match', 'value', 'channels', 'not elementwise', 'not unary'])
def test_errors_leave_the_model_as_it_was(settings, error, message):
    model = nn.Sequential()
    for name, module in (('fc', nn.Linear(2, 2)), ('act', nn.ReLU()), ('softmax', nn.Softmax(dim=1)),
                         ('bilinear', nn.Bilinear(2, 2, 2))):
        model.add_module(name, module)
    before = list(model.children())
    with pytest.raises(error, match=message):
        convert_activations(model, 'pssilu', **{'sharing': 'layer', **settings})
    assert all(a is b for a, b in zip(model.children(), before, strict=True))


@pytest.mark.parametrize('module, match, converted', [
    (Plain(), None, True), (Plain(), nn.ReLU, True), (nn.ReLU6(), nn.Hardtanh, False), (nn.ReLU6(), None, True),
    (nn.Hardtanh(), None, False), (PSiLU(), ParametricActivation, True), (nn.Linear(2, 2), nn.ReLU, False),
    (QuickGELU(), None, False), (QuickGELU(), lambda m: isinstance(m, QuickGELU), True),
], ids=['subclass', 'subclass by type', 'ReLU6 is no Hardtanh', 'ReLU6', 'gate', 'PAF by base', 'no activation',
        'by hand', 'by hand, asked for'])
def test_kinds_of_modules(module, match, converted):
    if isinstance(match, type):
        match = (match, nn.Mish)
    report = convert_activations(nn.Sequential(module, nn.Mish()), 'psilu', preserve=False, match=match)
    assert ('0' in places(report)) is converted


def test_an_activation_by_hand_is_named_then_fitted():
    report = convert_activations(nn.Sequential(QuickGELU(), nn.ReLU()), 'psilu')
    assert [(item.name, item.old) for item in report.left] == [('0', 'sigmoid')]
    model = nn.Sequential(QuickGELU())
    report = convert_activations(model, 'psilu', match=lambda m: isinstance(m, QuickGELU))
    assert model[0].alpha.item() == pytest.approx(1.702) and not report.left


def test_partial_functions_keep_their_settings():
    model = nn.Module()
    model.act = partial(F.leaky_relu, negative_slope=0.3, inplace=True)
    report = convert_activations(model, 'prelu0')
    assert report.max_deviation < 1e-6 and report.replaced[0].values == pytest.approx({'alpha': 0.3})
    with pytest.raises(TypeError, match='takes x alone'):
        model.act(torch.ones(2), 0.2)


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')  # the old network's own
def test_padded_tokens_pass_torchs_encoder():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.), 2).eval()
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False] * 3])
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
        convert_activations(model, 'prelu0')
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[~padding], before[~padding])


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'test_vit'])
def test_converted_network_is_a_network(name):
    """State dict, copy, script and compile, with a value that only the shared parameter has."""
    model, other = build(name), build(name)
    for network in (model, other):
        convert_activations(network, 'pssilu', preserve=False)
    (key, parameter), *more = paf_parameters(model).items()
    with torch.no_grad():
        parameter.fill_(3.)
    keys = [item for item in model.state_dict() if item.endswith(('alpha', 'beta'))]
    assert keys == [key, *dict(more)] and len(keys) == 2
    size = 160 if 'vit' in name else 64
    expected = output_of(model, size)
    assert not torch.equal(output_of(other, size), expected)
    other.load_state_dict(model.state_dict())
    for form in (other, copy.deepcopy(model), torch.jit.script(model), torch.compile(model, backend='eager')):
        torch.testing.assert_close(output_of(form, size), expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_network_runs_its_new_activations():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    compiled = torch.compile(model, backend='eager')
    x = torch.randn(3, 2)
    before = compiled(x)
    convert_activations(compiled, 'psilu', preserve=False)
    torch.testing.assert_close(compiled(x), model(x))
    assert not torch.allclose(compiled(x), before)
