import copy

import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.attacks import PGD, Normalized


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (2, 3, 4), (2, 3)], ids=str)
def test_pixels_are_normalised(shape):
    x = torch.rand(shape)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.)
    out = Normalized(nn.Flatten(), mean, std)(x).view(shape)
    for channel in range(3):
        torch.testing.assert_close(out[:, channel], (x[:, channel] - mean[channel]) / std[channel])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_dtype_and_copies(dtype):
    model = copy.deepcopy(Normalized(nn.Flatten(), [0.5], [0.1]).to(dtype))
    assert model(torch.rand(2, 3, 4, 4, dtype=dtype)).dtype == dtype
    assert Normalized(nn.Flatten(), [0.5], [0.1])(torch.rand(2, 3, dtype=dtype)).dtype == dtype  # autocast's case
    fresh = Normalized(nn.Flatten(), [0.], [1.])
    fresh.load_state_dict(model.state_dict())
    assert fresh.mean.item() == 0.5


def test_of_timm_reads_what_the_weights_were_trained_with():
    cfg = dict(mean=(.1, .2, .3), std=(.4, .5, .6))
    bare = timm.create_model('resnet18', num_classes=4, pretrained_cfg_overlay=cfg)
    model = Normalized.of_timm(bare.eval())
    x = torch.rand(2, 3, 32, 32)
    expected = bare((x - torch.tensor([.1, .2, .3]).view(3, 1, 1)) / torch.tensor([.4, .5, .6]).view(3, 1, 1))
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match=r"Linear has no pretrained_cfg with 'mean' and 'std'; pass them"):
        Normalized.of_timm(nn.Linear(2, 2))


def test_attack_is_in_units_of_pixels():
    """Through a std of 0.01 a radius of 0.1 would be one of 0.001 if it were taken on normalised images."""
    model = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), [0.5] * 3, [0.01] * 3)
    x = torch.rand(4, 3, 2, 2)
    x_adv = PGD(eps=0.1, random_start=False)(model, x, torch.tensor([0, 1, 2, 0]))
    assert (x_adv - x).abs().amax().item() == pytest.approx(0.1)
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize('mean, std, message', [
    ([0.5], [0.5, 0.5], 'expected one number per channel'), ([0.5], [0.], 'std above 0'),
    ([float('nan')], [1.], 'expected finite'), ([123.], [58.], 'by 255'),
    ([], [], 'one number per channel'),
], ids=str)
def test_bad_settings_are_named(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalized(nn.Flatten(), mean, std)


@pytest.mark.parametrize('model', [
    Normalized(nn.Flatten(), [0.5], [0.1]), timm.create_model('wrn10_2_relu', input_mean=[.5] * 3, input_std=[.1] * 3)],
    ids=['wrapped', 'layer'])
def test_nothing_is_normalised_twice(model):
    with pytest.raises(ValueError, match='already'):
        Normalized(model, [0.5] * 3, [0.1] * 3)


def test_other_channel_count_is_named():
    with pytest.raises(ValueError, match=r'images of shape \(2, 4, 5, 5\) for 3 means'):
        Normalized(nn.Flatten(), [0.5] * 3, [0.5] * 3)(torch.rand(2, 4, 5, 5))
