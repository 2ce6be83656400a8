"""RobustBench's own `load_model` finds the networks, by its source as far as the published wheel can run."""
import warnings
from pathlib import Path
from typing import Optional, Union

import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.models import register_robustbench_names


@pytest.fixture
def load_model(robustbench):
    enums = robustbench('model_zoo/enums.py')
    classes = dict(zip(enums.BenchmarkDataset, (10, 100, 1000), strict=True))
    return robustbench.function(
        'utils.py', 'load_model', timm=timm, nn=nn, Path=Path, Union=Union, Optional=Optional,
        warnings=warnings, DATASET_CLASSES=classes, all_models=None, **vars(enums))


@pytest.mark.parametrize('dataset, threat, classes', [
    ('cifar10', 'Linf', 10), ('cifar10', 'L2', 10), ('cifar100', 'Linf', 100), ('cifar10', 'corruptions', 10)])
def test_load_model_gives_the_checkpoint(load_model, tmp_path, dataset, threat, classes):
    source = timm.create_model('wrn10_2_pssilu', num_classes=classes).eval()
    path = tmp_path / 'model_best.pth.tar'
    torch.save({'state_dict': source.state_dict(), 'arch': 'wrn10_2_pssilu'}, path)
    loaded = load_model('WRN10-2_PSSiLU', dataset=dataset, threat_model=threat, custom_checkpoint=str(path))
    assert not loaded.training
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), source(x), rtol=0, atol=0)


def test_load_model_without_a_checkpoint_does_not_pass_for_one(load_model):
    loaded = load_model('wrn10_2_pssilu')
    with pytest.raises(RuntimeError, match='custom_checkpoint='):
        loaded(torch.rand(1, 3, 32, 32))


def test_averaged_weights_are_taken_first(load_model, tmp_path):
    raw, average = (timm.create_model('wrn10_2_relu') for _ in range(2))
    torch.save({'state_dict': raw.state_dict(), 'state_dict_ema': average.state_dict()}, tmp_path / 'a.pth.tar')
    loaded = load_model('wrn10_2_relu', custom_checkpoint=str(tmp_path / 'a.pth.tar'))
    assert torch.equal(loaded.fc.weight, average.fc.weight)


def test_names_work_in_timm_and_are_not_listed(tmp_path):
    name = 'resnet18_psoftplus_cifar10_l2'
    assert timm.is_model(name) and name not in timm.list_models() and timm.list_models('*_linf') == []
    model = timm.create_model(name)  # without weights asked for, an untrained network as under any name
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    again = timm.create_model(name, pretrained=True, num_classes=10, checkpoint_path=str(tmp_path / 'weights.pth'))
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.eval()(x), model.eval()(x), rtol=0, atol=0)
    overlay = dict(file=str(tmp_path / 'weights.pth'))
    from_file = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(from_file.eval()(x), model(x), rtol=0, atol=0)


def test_loaded_models_keep_nothing_of_the_refusal(tmp_path):
    model = timm.create_model('wrn10_2_relu_cifar10_linf', pretrained=True)
    assert model._forward_pre_hooks
    model.load_state_dict(timm.create_model('wrn10_2_relu').state_dict())
    assert not model._forward_pre_hooks and not model._load_state_dict_post_hooks


def test_half_the_weights_do_not_lift_the_refusal():
    model = timm.create_model('wrn10_2_relu_cifar10_linf', pretrained=True)
    weights = timm.create_model('wrn10_2_relu').state_dict()
    model.load_state_dict({name: value for name, value in weights.items() if 'fc' not in name}, strict=False)
    with pytest.raises(RuntimeError, match='none were loaded'):
        model(torch.rand(1, 3, 32, 32))


def test_other_models_can_be_registered():
    assert not timm.is_model('resnet26t_imagenet_l2')
    before = timm.list_models()
    register_robustbench_names(['resnet26t'])
    register_robustbench_names(['resnet26t'])  # a second time changes nothing
    assert timm.is_model('resnet26t_imagenet_l2') and timm.list_models() == before
