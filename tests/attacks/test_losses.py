"""Losses against formulas written out for one image, and their gradients against finite differences."""
import math

import pytest
import torch

from timm_paf.attacks import LOSSES

torch.manual_seed(0)
LOGITS = torch.randn(6, 5, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 4, 0])
TARGET = torch.tensor([1, 0, 4, 0, 2, 3])
CLEAN = torch.randn(6, 5, dtype=torch.float64)
COMPARED = {'kl': (CLEAN,), 'ce-targeted': (TARGET,), 'dlr-targeted': (Y, TARGET)}


def softmax(z):
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def by_hand(name, z, y, target, clean):
    first, _, third, fourth, *_ = sorted(z, reverse=True)
    other = max(v for i, v in enumerate(z) if i != y)
    return {
        'ce': -math.log(softmax(z)[y]),
        'kl': sum(p * math.log(p / q) for p, q in zip(softmax(clean), softmax(z), strict=True)),
        'margin': other - z[y],
        'dlr': -(z[y] - other) / (first - third),
        'ce-targeted': math.log(softmax(z)[target]),
        'dlr-targeted': -(z[y] - z[target]) / (first - (third + fourth) / 2),
    }[name]


@pytest.mark.parametrize('name', LOSSES)
def test_value_and_gradient(name):
    def loss(logits):
        return LOSSES[name](logits, *COMPARED.get(name, (Y,)))
    values = loss(LOGITS)
    expected = [by_hand(name, *row) for row in zip(*(t.tolist() for t in (LOGITS, Y, TARGET, CLEAN)), strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
    assert torch.autograd.gradcheck(loss, (LOGITS.clone().requires_grad_(),))


@pytest.mark.parametrize('name', LOSSES)
def test_half_precision_logits_are_compared_in_float32(name):
    logits = (30 * LOGITS).half()
    compared = [t.half() if t.is_floating_point() else t for t in COMPARED.get(name, (Y,))]
    values = LOSSES[name](logits, *compared)
    assert values.dtype == torch.float32
    wide = LOSSES[name](logits.double(), *[t.double() if t.is_floating_point() else t for t in compared])
    torch.testing.assert_close(values.double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name, classes', [('margin', 2), ('dlr', 3), ('dlr-targeted', 4)])
def test_too_few_classes_are_named(name, classes):
    y = torch.tensor([0])
    compared = (y, y) if name == 'dlr-targeted' else (y,)
    assert LOSSES[name](torch.arange(classes)[None].float(), *compared).isfinite().all()
    with pytest.raises(ValueError, match=f'loss {name} compares the {classes} largest .* has {classes - 1} c'):
        LOSSES[name](torch.zeros(1, classes - 1), *compared)


@pytest.mark.parametrize('name', ['margin', 'dlr', 'dlr-targeted'])
def test_equal_logits_are_finite(name):
    logits = torch.zeros(1, 5, requires_grad=True)
    y = torch.tensor([0])
    value = LOSSES[name](logits, *((y, y + 1) if name == 'dlr-targeted' else (y,)))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == 0 and gradient.isfinite().all()
