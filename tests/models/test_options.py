"""Normalisation inside the network, and padding as in JAX."""
import pytest
import timm
import torch
from torch import nn

import timm_paf  # noqa: F401
from timm_paf.models.options import use_same_padding


@pytest.mark.parametrize('size', [7, 8])
def test_same_padding_against_explicit_padding(size):
    # SAME (TensorFlow's definition): output ceil(size / 2), total padding 1 for even and 2 for odd, the surplus behind
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1))
    weight, bias = model[0].weight, model[0].bias
    use_same_padding(model)
    x = torch.randn(1, 2, size, size)
    pad = (0, 1, 0, 1) if size % 2 == 0 else (1, 1, 1, 1)
    torch.testing.assert_close(model(x), nn.functional.conv2d(nn.functional.pad(x, pad), weight, bias, stride=2))
    assert list(model.state_dict()) == ['0.same.weight', '0.same.bias'] and model[0].same.weight is weight


@pytest.mark.parametrize('kwargs, message', [
    (dict(input_mean=(0.5,) * 3), 'expected both, or neither'),
    (dict(input_mean=(0.5,), input_std=(0.2,)), 'in_chans = 3'),
    (dict(input_mean=(0.5,) * 3, input_std=(0.2, 0., 0.2)), 'above 0'),
    (dict(input_mean=(0.5,) * 3, input_std=(0.2,) * 2), 'one number per channel'),
    (dict(pad_type='valid'), "expected '' or 'same'"),
], ids=['half', 'channels', 'zero', 'lengths', 'padding'])
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('wrn10_2_relu', **kwargs)
