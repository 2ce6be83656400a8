import importlib.util
import subprocess
import sys

import pytest
import timm
import torch

from timm_paf import paf_parameters
from timm_paf.activations import ACTIVATIONS, ParametricActivation, PSSiLU

ARCHITECTURES = {
    'cifar_resnet': ['resnet18', 'resnet34', 'resnet50'],
    'preact_resnet': ['preact_resnet18'],
    'wide_resnet': ['wrn10_2', 'wrn28_4', 'wrn28_10', 'wrn34_10', 'wrn34_20', 'wrn70_16'],
    'cifar_vgg': [f'vgg{depth}{norm}' for depth in (11, 13, 16, 19) for norm in ('', '_bn')],
    'imagenet_resnet': ['resnet18_224', 'resnet50_224'],
}
REFERENCES = ['relu', 'elu', 'silu', 'softplus']
EXTRA = dict.fromkeys(ACTIVATIONS, 1) | {'ssilu': 0, 'pssilu': 2}


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('module', ARCHITECTURES)
def test_every_variant_is_listed_under_a_module_of_ours(module):
    expected = {f'{arch}_{act}' for arch in ARCHITECTURES[module] for act in [*REFERENCES, *ACTIVATIONS]}
    assert set(timm.list_models(module=module)) == expected
    assert importlib.util.find_spec(f'timm.models.{module}') is None
    assert all(timm.is_model(name) for name in expected)


def test_all_models_of_an_activation_are_found_by_its_name():
    assert set(timm.list_models('*_pssilu')) == {f'{arch}_pssilu' for archs in ARCHITECTURES.values() for arch in archs}


def test_import_is_cheap():
    # processor time, which other programs do not lengthen
    program = 'import timm, time; start = time.process_time(); import timm_paf; print(time.process_time() - start)'
    seconds = float(subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True).stdout)
    assert seconds < 0.1


@pytest.mark.parametrize('act', ACTIVATIONS)
@pytest.mark.parametrize('arch', [arch for archs in ARCHITECTURES.values() for arch in archs])
def test_one_activation_serves_the_network(arch, act):
    with torch.device('meta'):
        plain, model = timm.create_model(f'{arch}_relu'), timm.create_model(f'{arch}_{act}')
    assert count(model) - count(plain) == EXTRA[act] == len(paf_parameters(model))
    activations = {id(m) for m in model.modules() if isinstance(m, ParametricActivation)}
    assert len(activations) == 1
    # as many places as the ReLU network has ReLUs: one shared module must not mean that some were forgotten
    uses = sum(isinstance(child, ParametricActivation) for m in model.modules() for child in m._modules.values())
    assert uses == sum(isinstance(m, torch.nn.ReLU) for m in plain.modules())


def test_parameter_count_of_the_published_network():
    with torch.device('meta'):
        assert count(timm.create_model('wrn28_10_pssilu')) == 36_479_196


@pytest.mark.parametrize('name', ['resnet18_pssilu', 'wrn10_2_pssilu'])
def test_two_models_share_nothing(name):
    first, second = timm.create_model(name), timm.create_model(name)
    (a, *_), (b, *_) = paf_parameters(first).values(), paf_parameters(second).values()
    assert a is not b


def test_act_kwargs_reach_the_shared_activation():
    model = timm.create_model('wrn10_2_pssilu', act_kwargs=dict(alpha=2., learnable={'beta': False}))
    assert [p.item() for p in paf_parameters(model).values()] == [2.]
    with pytest.raises(ValueError, match='relu has no parameters'):
        timm.create_model('wrn10_2_relu', act_kwargs=dict(alpha=2.))


def test_act_layer_can_be_given():
    model = timm.create_model('wrn10_2_relu', act_layer='pssilu')
    assert len([m for m in model.modules() if isinstance(m, PSSiLU)]) == 7


@pytest.mark.parametrize('name, stem, reductions', [
    ('resnet18_pssilu', 64, [1, 1, 2, 4, 8]), ('resnet50_pssilu', 64, [1, 1, 2, 4, 8]),
    ('preact_resnet18_pssilu', 64, [1, 1, 2, 4, 8]), ('wrn10_2_pssilu', 16, [1, 1, 2, 4]),
])
def test_small_image_geometry(name, stem, reductions):
    model = timm.create_model(name)
    assert model.conv1.weight.shape == (stem, 3, 3, 3) and model.conv1.stride == (1, 1)
    assert not any(isinstance(m, torch.nn.MaxPool2d) for m in model.modules())
    maps = model.eval().forward_intermediates(torch.rand(1, 3, 32, 32), intermediates_only=True)
    assert [m.shape[-1] for m in maps] == [32 // r for r in reductions] == [
        32 // info['reduction'] for info in model.feature_info]
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]


def test_stock_model_takes_the_activation_by_name():
    with torch.device('meta'):
        assert len(paf_parameters(timm.create_model('resnet50', act_layer='pssilu'))) == 2 * 49
