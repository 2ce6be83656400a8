"""timm's contract on every architecture, on the meta device: structure and shapes, no values."""
import itertools
import math
import re

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from timm_paf import paf_parameters
from timm_paf.activations import ParametricActivation

MODULES = ['cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet']
ARCHITECTURES = [name.removesuffix('_relu') for module in MODULES for name in timm.list_models('*_relu', module=module)]
# every architecture, with ReLU and with one shared module in turn; the other names in the slow run
QUICK = [f'{arch}_{act}' for arch, act in zip(ARCHITECTURES, itertools.cycle(['pssilu', 'relu']), strict=False)]
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for module in MODULES for name in timm.list_models(module=module)]


def create(name, **kwargs):
    return timm.create_model(name, device='meta', **kwargs)


def images(model, size=None):
    _, height, width = model.default_cfg['input_size']
    return torch.empty(2, model.in_chans, size or height, size or width, device='meta')


def shared_module(model):
    return next((m for m in model.modules() if isinstance(m, ParametricActivation)), None)


@pytest.mark.parametrize('name', NAMES)
def test_cfg_features_and_head(name):
    model = create(name)
    cfg, state = model.pretrained_cfg, model.state_dict()
    assert cfg is model.default_cfg
    assert (cfg['architecture'], cfg['mean'], cfg['std'], cfg['interpolation']) == (name, (0,) * 3, (1,) * 3, 'bicubic')
    assert cfg['input_size'] == ((3, 224, 224) if '_224_' in name else (3, 32, 32))
    assert cfg['num_classes'] == model.num_classes == (1000 if '_224_' in name else 10)
    assert state[cfg['first_conv'] + '.weight'].shape[1] == model.in_chans == 3
    assert state[cfg['classifier'] + '.weight'].shape == (model.num_classes, model.head_hidden_size)
    assert model.get_classifier() is getattr(model, model.get_classifier(name_only=True)) is model.fc

    features = model.forward_features(images(model))
    assert features.shape == (2, model.num_features, *cfg['pool_size'])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    logits = model.forward_head(features)
    assert logits.shape == (2, model.num_classes)
    logits.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []

    features = features.detach()
    model.eval()
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (2, model.num_features) and isinstance(model.fc, nn.Identity)
    model.reset_classifier(0, '')
    assert model.forward_head(features).shape == features.shape
    model.reset_classifier(7, 'catavgmax')
    assert model.forward_head(features).shape == (2, 7) and model.num_classes == 7
    assert model.fc.weight.shape == (7, model.head_hidden_size) == (7, 2 * model.num_features)
    assert not model.fc.training and model.fc.weight.is_meta


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_features_only_gives_the_levels_of_feature_info(name):
    model = create(name, features_only=True, in_chans=1)
    info = model.feature_info
    maps = model(images(model))
    height, width = model.default_cfg['input_size'][1:]
    assert len(maps) == len(info) >= 4 and info.out_indices == tuple(range(len(info)))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, math.ceil(height / reduction), math.ceil(width / reduction))
        for channels, reduction in zip(info.channels(), info.reduction(), strict=True)]
    taps = [model.get_submodule(name) for name in info.module_name()]
    assert len(set(taps)) == len(taps) and shared_module(model) not in taps
    assert create(name, features_only=True, out_indices=(1, 3)).feature_info.module_name() == info.module_name([1, 3])


@pytest.mark.parametrize('name', NAMES)
def test_construction_arguments(name):
    model = create(
        name, num_classes=0, global_pool='', in_chans=5, drop_rate=0.5, dtype=torch.bfloat16,
        pretrained_cfg_overlay={'crop_pct': 0.5})
    tensors = model.state_dict().values()
    assert {t.dtype for t in tensors} <= {torch.bfloat16, torch.int64} and all(t.is_meta for t in tensors)
    assert (model.drop_rate, model.num_classes, model.in_chans) == (0.5, 0, 5)
    assert model.state_dict()[model.pretrained_cfg['first_conv'] + '.weight'].shape[1] == 5
    assert model.pretrained_cfg['crop_pct'] == 0.5
    x = torch.empty(2, model.num_features, 2, 2, device='meta')
    assert model.forward_head(x).shape == x.shape
    other = create(name, act_layer='leaky_relu', norm_layer='groupnorm1')
    assert shared_module(other) is None
    assert any(isinstance(m, nn.LeakyReLU) for m in other.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in other.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in other.modules())


@pytest.mark.parametrize('name', NAMES)
def test_layer_groups_follow_the_depth(name):
    model = create(name)
    names = [n for n, _ in model.named_parameters()]
    for coarse in (False, True):
        layer = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(layer) == set(names)
        chain = [layer[n] for n in names if n not in paf_parameters(model)]
        assert chain == sorted(chain) and chain[0] == 0
        assert layer['fc.weight'] == max(chain) and chain.count(max(chain)) == 2
        assert all(layer[n] == max(chain) for n in paf_parameters(model))
    stages = {re.match(r'layer\d', n)[0] for n in names if n.startswith('layer')}
    assert max(chain) == len(stages) + (not name.startswith('vgg11'))  # coarse; the stem of VGG-11 is its first stage

    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, layer_decay=0.5)
    scales = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    assert {scales[id(p)] for p in [*paf_parameters(model).values(), *model.fc.parameters()]} == {1.}
    assert scales[id(model.get_parameter(model.pretrained_cfg['first_conv'] + '.weight'))] < 0.1


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_pruning_keeps_what_the_levels_need(name):
    model, whole = create(name), create(name)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    x = images(model, size=16)
    maps = model.forward_intermediates(x, [0, 1], stop_early=True, intermediates_only=True)
    expected = [info['num_chs'] for info in whole.feature_info[:2]]
    assert [m.shape[1] for m in maps] == expected and model.num_features == expected[1]
    assert model(x).shape == maps[1].shape  # what is left is a network without head
    before, after = ({n.split('.')[0] for n, _ in m.named_parameters()} for m in (whole, model))
    gone = before - after
    assert {'layer3', 'fc'} <= gone and not {'conv1', 'layer1'} & gone
    keys = list(whole.state_dict())
    whole.prune_intermediate_layers(1, prune_head=False)
    assert list(whole.state_dict()) == keys
