"""Places of activations in a network: those found, those only named, and stages."""

import pytest
import timm
import torch
from torch import nn

from tests.activations.networks import Functional, places
from timm_paf import convert_activations
from timm_paf.activations.sites import stages


def test_functions_are_replaced_or_named():
    model = Functional().eval()
    x = torch.randn(3, 4)
    before = model(x)
    report = convert_activations(model, 'prelu0')
    assert places(report) == ['activation'] and report.replaced[0].old.startswith('ReLU')
    torch.testing.assert_close(model(x), before)
    with torch.no_grad():
        model.activation.act.alpha.fill_(3.)
    assert not torch.allclose(model(x), before)
    left = {(item.name, item.old): item.reason for item in report.left}
    assert left['gate', 'Sigmoid()'] == 'a gate'
    ((_, calls),) = [key for key, reason in left.items() if 'called in the code of Functional.forward' in reason]
    assert calls == 'gelu, relu'


def test_calls_in_any_method_are_named():
    report = convert_activations(timm.create_model('mobilevitv2_050', device='meta'), 'pssilu', preserve=False)
    (item,) = [item for item in report.left if item.old == 'relu']
    assert item.reason == ('called in the code of LinearSelfAttention._forward_cross_attn, '
                           'LinearSelfAttention._forward_self_attn')


def test_traced_graphs_name_their_calls():
    report = convert_activations(torch.fx.symbolic_trace(Functional()), 'prelu0', match=nn.Sigmoid, preserve=False)
    assert any('gelu' in item.old for item in report.left)


def test_activations_out_of_reach_are_named():
    model = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Sequential(nn.ReLU())))
    model.kept = [nn.Linear(2, 2), nn.SiLU()]
    model.by_name = {'a': nn.GELU()}
    report = convert_activations(model, 'pssilu')
    assert places(report) == ['0']
    reasons = {item.name: item.reason for item in report.left}
    assert set(reasons) == {'kept[1]', "by_name['a']", '1.0'}
    assert 'TorchScript' in reasons['1.0'] and 'outside of the module tree' in reasons['kept[1]']


@pytest.mark.parametrize('name, expected', [
    ('resnet101', ['act1', 'layer1.0.act1', 'layer2.0.act1', 'layer3.0.act1', 'layer4.0.act1']),
    ('regnety_002', ['stem.bn.act', 's1.b1.act3', 's2.b1.act3', 's3.b1.act3', 's4.b1.act3']),
    ('vit_tiny_patch16_224', ['blocks.0.mlp.act']), ('mixer_s32_224', ['blocks.0.mlp_tokens.act']),
    ('swin_tiny_patch4_window7_224', [f'layers.{i}.blocks.0.mlp.act' for i in range(4)]),
    ('convnext_atto', [f'stages.{i}.blocks.0.mlp.act' for i in range(4)]),
    ('efficientnet_b0', ['bn1.act', *(f'blocks.{i}.0.bn1.act' for i in range(7)), 'bn2.act']),
    ('vgg16', ['features.1', 'pre_logits.act1']),
], ids=lambda v: v if isinstance(v, str) else '')
def test_stages(name, expected):
    with torch.device('cpu' if name == 'regnety_002' else 'meta'):  # torch 2.6 cannot lay a regnet out on meta
        model = timm.create_model(name)
    report = convert_activations(model, 'pssilu', sharing='stage', preserve=False)
    assert list(dict.fromkeys(item.group for item in report.replaced)) == expected


def test_stages_of_few_blocks_and_of_wrapped_networks():
    names = [f'module.layers.{i}.blocks.{j}.act' for i in range(3) for j in range(2)]
    assert set(stages(names).values()) == {f'module.layers.{i}' for i in range(3)}
