"""Weights are cast once per attack, and the results are those of autocast."""
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from timm_paf.attacks import PGD
from timm_paf.attacks.cast_weights import with_cast_weights


def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))


def tied():
    model = plain()
    model[1] = nn.Conv2d(8, 8, 3, padding=1)
    model[2].weight = model[1].weight
    return model


def normalised():
    model = plain()
    parametrizations.weight_norm(model[2])
    return model


class Scaled(nn.Conv2d):
    """Computes with its weight before autocast sees it."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.square().mean().sqrt(), self.bias)


def scaled():
    model = plain()
    model[2] = Scaled(8, 8, 3)
    return model


@pytest.mark.parametrize('make', [plain, tied, normalised, scaled], ids=lambda make: make.__name__)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_logits_are_those_of_autocast(make, dtype):
    torch.manual_seed(0)
    model, x = make().eval().requires_grad_(False), torch.rand(4, 3, 8, 8)
    with torch.autocast('cpu', dtype):
        assert torch.equal(with_cast_weights(model)(x), model(x))
    assert with_cast_weights(model) is model


def test_casts_do_not_grow_with_the_steps():
    model, x, y = plain(), torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    casts = []
    for steps in (1, 6):
        with torch.autocast('cpu', torch.bfloat16), torch.profiler.profile(record_shapes=True) as profile:
            PGD(eps=0.1, steps=steps)(model, x, y)
        shapes = [tuple(model[i].weight.shape) for i in (0, 2, 4)]
        casts.append(sum(
            event.name == 'aten::_to_copy' and tuple(event.input_shapes[0]) in shapes for event in profile.events()))
    assert casts == [3, 3]
