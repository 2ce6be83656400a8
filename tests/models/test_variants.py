"""Registered names, and how many activations a model has: one, one per stage, per place or per channel."""
import importlib.util
import subprocess
import sys

import pytest
import timm
import torch
from torch.testing import assert_close

from timm_paf import paf_parameters
from timm_paf.activations import ACTIVATIONS, ParametricActivation, PSSiLU
from timm_paf.models import load_weights, save_for_hf

ARCHITECTURES = {
    'cifar_resnet': ['resnet18', 'resnet34', 'resnet50'],
    'preact_resnet': ['preact_resnet18'],
    'wide_resnet': ['wrn10_2', 'wrn28_4', 'wrn28_10', 'wrn34_10', 'wrn34_20', 'wrn70_16'],
    'cifar_vgg': [f'vgg{depth}{norm}' for depth in (11, 13, 16, 19) for norm in ('', '_bn')],
    'imagenet_resnet': ['resnet18_224', 'resnet50_224'],
}
REFERENCES = ['relu', 'elu', 'silu', 'softplus']
EXTRA = dict.fromkeys(ACTIVATIONS, 1) | {'ssilu': 0, 'pssilu': 2}
# numbers of places and channels, counted by hand from the architectures
COUNTS = {
    'wrn10_2': dict(stage=4, layer=7, channel=16 + 32 + 32 + 64 + 64 + 128 + 128),
    'resnet18': dict(stage=5, layer=17, channel=64 + 4 * (64 + 128 + 256 + 512)),
    'vgg11': dict(stage=5, layer=8, channel=64 + 128 + 2 * (256 + 512 + 512)),
    'resnet18_224': dict(stage=5, layer=17, channel=64 + 4 * (64 + 128 + 256 + 512)),
}


def count(model):
    return sum(p.numel() for p in model.parameters())


def create(name, sharing, **kwargs):
    torch.manual_seed(0)
    sharing = {} if sharing is None else dict(act_sharing=sharing)
    return timm.create_model(f'{name}_pssilu', num_classes=10, **sharing, **kwargs).eval()


@pytest.mark.parametrize('module', ARCHITECTURES)
def test_every_variant_is_listed_under_a_module_of_ours(module):
    expected = {f'{arch}_{act}' for arch in ARCHITECTURES[module] for act in [*REFERENCES, *ACTIVATIONS]}
    assert set(timm.list_models(module=module)) == expected
    assert importlib.util.find_spec(f'timm.models.{module}') is None
    assert all(timm.is_model(name) for name in expected)


def test_import_is_cheap():
    # processor time, which other programs do not lengthen
    program = 'import timm, time; start = time.process_time(); import timm_paf; print(time.process_time() - start)'
    command = [sys.executable, '-c', program]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.1  # the smallest, since a busy core counts its waits for memory as processor time


@pytest.mark.parametrize('arch, act', [
    *((arch, 'pssilu') for archs in ARCHITECTURES.values() for arch in archs),
    *(('wrn10_2', act) for act in ACTIVATIONS if act != 'pssilu')])
def test_one_activation_serves_the_network(arch, act):
    with torch.device('meta'):
        plain, model = timm.create_model(f'{arch}_relu'), timm.create_model(f'{arch}_{act}')
    assert count(model) - count(plain) == EXTRA[act] == len(paf_parameters(model))
    activations = {id(m) for m in model.modules() if isinstance(m, ParametricActivation)}
    assert len(activations) == 1
    # as many places as the ReLU network has ReLUs: one shared module must not mean that some were forgotten
    uses = sum(isinstance(child, ParametricActivation) for m in model.modules() for child in m._modules.values())
    assert uses == sum(isinstance(m, torch.nn.ReLU) for m in plain.modules())


def test_act_kwargs_and_act_layer():
    first, second = (
        paf_parameters(timm.create_model('wrn10_2_pssilu', act_kwargs=dict(alpha=2., learnable={'beta': False})))
        for _ in range(2))
    assert [p.item() for p in first.values()] == [2.] and all(first[name] is not second[name] for name in first)
    model = timm.create_model('wrn10_2_relu', act_layer='pssilu')
    assert len([m for m in model.modules() if isinstance(m, PSSiLU)]) == 7


@pytest.mark.parametrize('name, sharing', [
    *(('wrn10_2', sharing) for sharing in (None, 'network', 'stage', 'layer', 'channel')),
    *((name, sharing) for name in ('resnet18', 'vgg11', 'resnet18_224') for sharing in ('stage', 'channel'))])
def test_number_of_values(name, sharing):
    model = create(name, sharing)
    parameters = paf_parameters(model)
    expected = COUNTS[name].get(sharing, 1)
    assert sum(p.numel() for p in parameters.values()) == 2 * expected
    if sharing != 'channel':
        assert len(parameters) == 2 * expected
    assert count(model) - count(timm.create_model(f'{name}_relu', num_classes=10)) == 2 * expected


@pytest.mark.parametrize('sharing', ['stage', 'layer', 'channel'])
def test_at_first_it_is_the_same_function_and_then_each_learns_its_own(sharing):
    model, shared = (create('wrn10_2', s, act_kwargs=dict(alpha=2., beta=0.1)) for s in (sharing, None))
    x = torch.rand(2, 3, 16, 16)
    assert_close(model(x), shared(x))
    model(x).square().sum().backward()
    shared(x).square().sum().backward()
    gradients = [p.grad for name, p in paf_parameters(model).items() if name.endswith('alpha')]
    assert_close(torch.cat(gradients).sum(), shared.layer1[0].act1.alpha.grad[0], rtol=1e-4, atol=1e-5)


def test_keys_of_the_state_dict():
    def keys(sharing):
        return [key for key in create('wrn10_2', sharing).state_dict() if key.endswith('alpha')]

    places = [f'layer{stage}.0.act{i}.alpha' for stage in (1, 2, 3) for i in (1, 2)] + ['act.alpha']
    assert keys('network') == ['layer1.0.act1.alpha']
    assert keys('stage') == [places[0], places[2], places[4], places[6]]
    assert keys('layer') == keys('channel') == places


@pytest.mark.parametrize('sharing, way', [('stage', 'load_weights'), ('layer', 'overlay'), ('channel', 'hub'),
                                          ('channel', 'overlay')])
def test_weights_round_trip(sharing, way, tmp_path):
    model = create('wrn10_2', sharing)
    with torch.no_grad():
        for p in paf_parameters(model).values():
            p.uniform_(0.1, 0.4)
    if way == 'hub':
        save_for_hf(model, tmp_path / 'hub', training_data='none', model_args=dict(act_sharing=sharing))
        again = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    else:
        torch.save(model.state_dict(), tmp_path / 'w.pth')
        if way == 'overlay':
            overlay = dict(file=str(tmp_path / 'w.pth'), num_classes=10)
            again = create('wrn10_2', sharing, pretrained=True, pretrained_cfg_overlay=overlay)
        else:
            again = create('wrn10_2', sharing)
            load_weights(again, tmp_path / 'w.pth')
    x = torch.rand(2, 3, 16, 16)
    assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize('name, settings, message', [
    ('wrn10_2_pssilu', dict(act_sharing='block'), "act_sharing = 'block': expected one of network, stage"),
    ('wrn10_2_relu', dict(act_sharing='layer'), "act_sharing = 'layer'"),
    ('wrn10_2_pssilu', dict(act_sharing='layer', act_layer='psilu'), 'act_layer'),
    ('wrn10_2_relu', dict(act_kwargs=dict(alpha=2.)), 'relu has no parameters'),
], ids=['unknown', 'relu', 'two activations', 'act_kwargs'])
def test_errors(name, settings, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **settings)
