"""A network with one shared activation in torch and timm: compile, export, move, freeze, save."""
import copy
import io
import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from timm.optim import create_optimizer_v2
from timm.utils import freeze, unfreeze
from torch import nn

from timm_paf import paf_parameters, shared
from timm_paf.activations import ACTIVATIONS, ParametricActivation

# a residual, a norm-act, a transformer network of timm, and one of ours
ARCHITECTURES = ['test_resnet', 'test_efficientnet', 'test_vit', 'wrn10_2_relu']
torch_2_6 = torch.__version__ < '2.7'  # exports for a fixed batch size only, and no BatchNorm to ONNX


def build(name, **kwargs):
    torch.manual_seed(0)
    size = dict(img_size=32) if name == 'test_vit' else {}
    act_layer = shared('pssilu', alpha=2., beta=0.2)
    return timm.create_model(name, act_layer=act_layer, num_classes=7, **size, **kwargs).eval()


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    model = build(request.param)
    model.name = request.param
    return model


@pytest.fixture(params=[
    'test_efficientnet', 'wrn10_2_relu', *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[::2])])
def traced(request):
    """A network for tests that take seconds per network."""
    model = build(request.param)
    model.name = request.param
    return model


@pytest.fixture
def x():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model, logits):
    model.zero_grad()
    logits.square().sum().backward()
    return [p.grad.clone() for p in paf_parameters(model).values()]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')  # of timm's patch embedding
@pytest.mark.parametrize('script', [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 3, 32, 32))],
                         ids=['script', 'trace'])
def test_torchscript(traced, x, script):
    expected = traced(x)
    slopes = gradients(traced, expected)
    buffer = io.BytesIO()
    torch.jit.save(script(traced), buffer)
    loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    close(loaded(x), expected)
    learned = {name: p for name, p in loaded.named_parameters() if name.endswith(('alpha', 'beta'))}
    assert list(learned) == list(paf_parameters(traced))
    loaded(x).square().sum().backward()
    for parameter, slope in zip(learned.values(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_compile_sees_one_graph(act):
    """fullgraph=True raises where the graph would break; values and gradients are those of the eager network."""
    torch.manual_seed(0)
    model = nn.Sequential()
    act_layer = shared(act)
    for _ in range(2):
        model.append(nn.Conv2d(3, 3, 3))
        model.append(act_layer())
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    results = []
    for network in (model, compiled):
        y = network(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])))
    for eager, other in zip(*results, strict=True):
        close(eager, other)


@pytest.mark.slow
def test_compiled_network(x):
    model = build('wrn10_2_relu')
    expected = model(x)
    slopes = gradients(model, expected)
    logits = torch.compile(model, fullgraph=True)(x)
    close(logits, expected)
    for a, b in zip(gradients(model, logits), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_export(traced, x):
    dynamic = None if traced.name == 'test_vit' or torch_2_6 else ({0: torch.export.Dim('batch', min=1, max=64)},)
    program = torch.export.export(traced, (x,), dynamic_shapes=dynamic)
    assert len([key for key in program.state_dict if key.endswith('alpha')]) == 1
    close(program.module()(x), traced(x))
    if dynamic:
        more = torch.cat([x, x, x])
        close(program.module()(more), traced(more))


@pytest.mark.filterwarnings('ignore')  # of the exporter, about itself
@pytest.mark.parametrize('name, dynamo', [
    *((name, False) for name in ('test_efficientnet', 'wrn10_2_relu', *ACTIVATIONS)),
    *(pytest.param(name, True, marks=[pytest.mark.skipif(torch_2_6, reason='torch 2.6'), *marks])
      for name, marks in (('wrn10_2_relu', []), ('test_efficientnet', [pytest.mark.slow])))])
def test_onnx_computes_the_same(name, dynamo, x, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    model, path = build(name) if name not in ACTIVATIONS else ACTIVATIONS[name](), tmp_path / 'model.onnx'
    if name in ACTIVATIONS:
        x = torch.tensor([[-50., -3., -0.4, 0., 0.7, 4., 60.]])
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(path), dynamo=dynamo, **(dict(verbose=False) if dynamo else {}))
        expected = model(x)
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('way', ['assign', 'to_empty'])
def test_from_the_meta_device(model, x, way):
    with torch.device('meta'):
        target = build(model.name)
    assert all(p.is_meta for p in paf_parameters(target).values())
    if way == 'to_empty':
        target.to_empty(device='cpu')
    target.load_state_dict(model.state_dict(), assign=way == 'assign')
    assert not any(p.is_meta for p in target.parameters())
    assert len(paf_parameters(target)) == 2
    close(target(x), model(x))


def test_functional_call_and_its_gradient_leave_the_model_alone(model, x):
    before, logits = copy.deepcopy(model.state_dict()), model(x)
    slopes = gradients(model, logits)
    identities = {name: id(p) for name, p in model.named_parameters()}
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def call(values):
        return torch.func.functional_call(model, {**parameters, **values}, (x,))

    learned = {name: parameters[name] for name in paf_parameters(model)}
    found = torch.func.grad(lambda values: call(values).square().sum())(learned)
    for a, b in zip(found.values(), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    alpha = next(iter(paf_parameters(model)))
    moved = call({alpha: parameters[alpha] + 1.})
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    close(model(x), logits)
    with torch.no_grad():
        model.get_parameter(alpha).add_(1.)
    close(moved, model(x))
    assert not torch.allclose(moved, logits)


def test_freeze():
    """A shared activation belongs to each of its places: freezing one freezes it, and it can be released alone."""
    model = timm.create_model('resnet18', act_layer=shared('pssilu'))
    freeze(model, ['layer1'], include_bn_running_stats=False)
    assert not any(p.requires_grad for p in paf_parameters(model).values())
    assert not model.layer1[0].conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad
    for parameter in paf_parameters(model).values():
        parameter.requires_grad_()
    assert model.layer4[1].act2.alpha.requires_grad and not model.layer1[0].conv1.weight.requires_grad
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_layer_decay_leaves_it_at_full_rate():
    model = timm.create_model('resnet18', act_layer=shared('pssilu'))
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    assert len(scale) == len(list(model.parameters()))
    assert {scale[id(p)] for p in paf_parameters(model).values()} == {1.}
    assert scale[id(model.conv1.weight)] < scale[id(model.layer3[0].conv1.weight)] < 1.
    assert scale[id(model.get_classifier().weight)] == 1.


def test_safetensors(model, x, tmp_path):
    expected = model(x)
    save_file(model.state_dict(), tmp_path / 'dict.safetensors')
    save_model(model, str(tmp_path / 'model.safetensors'))
    for load in (lambda m: m.load_state_dict(load_file(tmp_path / 'dict.safetensors')),
                 lambda m: load_model(m, str(tmp_path / 'model.safetensors'))):
        target = build(model.name)
        for parameter in paf_parameters(target).values():
            nn.init.zeros_(parameter)
        load(target)
        close(target(x), expected)


@pytest.mark.parametrize('safe', [True, False], ids=['safetensors', 'bin'])
def test_hub_folder(model, x, safe, tmp_path):
    expected = model(x)
    # older releases of timm record no arguments
    size = dict(img_size=32) if model.name == 'test_vit' else {}
    recorded = {} if hasattr(model, '_model_args') else dict(model_args=dict(act_layer='shared_pssilu', **size))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=safe, **recorded)
    if 'relu' not in model.name:
        assert json.loads((tmp_path / 'config.json').read_text())['model_args']['act_layer'] == 'shared_pssilu'
    target = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    close(target(x), expected)
    assert len({id(m) for m in target.modules() if isinstance(m, ParametricActivation)}) == 1
    assert len(paf_parameters(target)) == 2


@pytest.mark.parametrize('name, settings', [
    ('test_resnet', dict(learnable={'beta': False})), ('vgg11', {})], ids=['settings', 'no names'])
def test_hub_refuses_what_a_name_does_not_say(name, settings, tmp_path):
    with torch.device('meta'):
        model = timm.create_model(name, act_layer=shared('pssilu', **settings))
    if not hasattr(model, '_model_args'):
        pytest.skip('this release of timm records no arguments')
    with pytest.raises(ValueError, match=re.escape("'act_layer' is not serializable; provide a model_args")):
        timm.models.save_for_hf(model, tmp_path)


def test_the_name_shares_within_a_model_only():
    first, second = (timm.create_model('resnet18', act_layer='shared_pssilu') for _ in range(2))
    assert first.act1 is first.layer4[1].act2 and first.act1 is not second.act1
    outside = [timm.layers.create_act_layer('shared_pssilu', inplace=True) for _ in range(2)]
    assert outside[0] is not outside[1] and [module.places for module in outside] == [1, 1]
    third = timm.create_model('resnet18', act_layer='shared_pssilu')
    assert len({id(module) for module in (*outside, first.act1, second.act1, third.act1)}) == 5


def test_a_name_that_cannot_share_is_an_error_and_not_one_module_per_place(monkeypatch):
    def early(pretrained=False, act_layer='relu', **kwargs):
        return nn.Sequential(*(timm.layers.create_act_layer(act_layer) for _ in range(2)))

    monkeypatch.setitem(timm.models._registry._model_entrypoints, 'early', early)
    with pytest.raises(ValueError, match=r"early makes activations before.*timm_paf.shared\('pssilu'\)"):
        timm.create_model('early', act_layer='shared_pssilu')
    model = timm.create_model('early', act_layer=shared('pssilu'))
    assert model[0] is model[1]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_promotes_nothing_behind_an_activation(model, x, dtype):
    seen = []
    handles = [m.register_forward_hook(lambda m, i, y: seen.append((i[0].dtype, y.dtype)))
               for m in model.modules() if isinstance(m, ParametricActivation)]
    with torch.autocast('cpu', dtype=dtype):
        assert model(x).dtype == dtype
    assert handles and seen and all(before == after for before, after in seen)
    assert dtype in {after for _, after in seen}


def test_cast_and_placed_as_the_model_is(model):
    assert {p.dtype for p in copy.deepcopy(model).to(torch.float16).parameters()} == {torch.float16}
    placed = build(model.name, device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in paf_parameters(placed).values()} == {('meta', torch.bfloat16)}
