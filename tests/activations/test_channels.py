"""One value per channel: the dimension of the channels and their number."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.activations.networks import pafs
from timm_paf import convert_activations
from timm_paf.activations import PReLU0


class Tokens(nn.Module):
    """Channels last, and the activation gets half of the layer's output."""

    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 12), nn.GELU()

    def forward(self, x):
        a, b = self.fc(x).chunk(2, dim=-1)
        return self.act(a) * b


def test_slopes_a_channel_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-0.5, 0., 0.25, 2.]))
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    report = convert_activations(model, 'prelu0', sharing='channel', example_input=x)
    assert isinstance(model[1], PReLU0) and report.max_deviation == 0
    torch.testing.assert_close(model(x), before)


def test_places_that_do_not_run_have_no_channels():
    model = nn.ModuleDict({'used': nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 'unused': nn.ReLU()})
    model.forward = model['used'].forward
    with pytest.raises(ValueError, match='unused did not run'):
        convert_activations(model, 'pssilu', sharing='channel', example_input=torch.rand(1, 2))


@pytest.mark.parametrize('model, shape, channels, dim', [
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU()), (2, 3, 4), 6, -1),
    (lambda: nn.Sequential(nn.Conv1d(4, 6, 1), nn.Identity(), nn.ReLU()), (2, 4, 5), 6, 1),
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()), (2, 4), 6, 1), (Tokens, (2, 5, 5, 4), 6, -1),
    (Tokens, (2, 7, 4), 6, -1), (lambda: timm.layers.LayerNormAct(6), (2, 5, 5, 6), 6, -1),
    (lambda: timm.layers.BatchNormAct2d(6), (2, 6, 5, 5), 6, 1),
], ids=['linear, dropout', 'conv1d, identity', 'vectors', 'NHWC, half', 'tokens, half', 'norm-act last', 'norm-act'])
def test_channels_follow_the_layer_before(model, shape, channels, dim):
    model = model().eval()
    x = torch.randn(*shape)
    before = model(x)
    match = (nn.ReLU, nn.GELU)
    convert_activations(model, 'psilu', sharing='channel', example_input=x, match=match, preserve=False)
    (paf,) = pafs(model)
    assert paf.alpha.shape == (channels,) and paf.channel_dim == dim
    assert model(x).shape == before.shape


def test_one_module_for_several_widths_has_no_channels():
    model = torchvision.models.resnet50()
    with pytest.raises(ValueError, match=r'layer1\.0\.relu is one module for 64 and 256 channels'):
        convert_activations(model, 'prelu0', sharing='channel', example_input=torch.zeros(1, 3, 32, 32))
    assert not pafs(model)
