"""Curves of a model whose distance to the boundary is known for every image."""
import pytest
import torch
from torch import nn

from timm_paf.evaluation import Accuracy, accuracy_by_class, robustness_curve

X = torch.linspace(0.3, 0.7, 41)[:, None, None, None].expand(41, 1, 4, 4).contiguous()
Y = (X[:, 0, 0, 0] > 0.5).long()
DISTANCE = (X[:, 0, 0, 0] - 0.5).abs()


class Threshold(nn.Module):
    """Two classes by the mean pixel: images at mean 1/2 + d are robust while eps < d."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.))

    def forward(self, x):
        logit = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([torch.zeros_like(logit), logit], 1)


class Gap(Threshold):
    """Breaks between 0.04 and 0.06 around the right image only: a larger step passes over the hole."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        hole = ((mean - 0.5).abs() < 0.06) & ((mean - 0.5).abs() > 0.04)
        logits = super().forward(x)
        return torch.where(hole[:, None], -logits, logits)


@pytest.mark.parametrize('early_stop', [False, True], ids=['all images', 'early stop'])
def test_curve_is_the_closed_form(early_stop):
    radii = ['0.105', '0/255', 0.015, '14/255']
    curve = robustness_curve(Threshold(), X, Y, eps=radii, steps=5, early_stop=early_stop)
    assert [point.eps for point in curve.points] == ['0/255', '0.015', '14/255', '0.105']
    for point in curve.points:
        expected = Accuracy(int((point.eps_value < DISTANCE).sum()) if point.eps_value else 41, 41)
        assert point.worst == expected and point.alone == (None if early_stop else expected)
    assert (curve.attack, curve.norm, curve.steps, curve.seed) == ('PGD-5', 'linf', 5, 0)


def test_worst_case_includes_smaller_radii():
    # the gradient never points into the hole: only the first step of a small radius lands there
    x = torch.full((1, 1, 4, 4), 0.58)
    curve = robustness_curve(Gap(), x, torch.ones(1, dtype=torch.int64), eps=['0.03', '0.07'], steps=1)
    small, large = curve.points
    assert small.alone == small.worst == Accuracy(0, 1)
    assert large.worst == Accuracy(0, 1) and large.alone == Accuracy(1, 1)


def test_early_stop_attacks_only_robust_images():
    seen, model = [], Threshold()
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    counts = []
    for early_stop in (False, True):
        seen.clear()
        robustness_curve(model, X, Y, eps=['0.105', '0.155', '0.3'], steps=4, early_stop=early_stop)
        counts.append(sum(seen))
    robust = [41, int((DISTANCE > 0.105).sum()), int((DISTANCE > 0.155).sum())]
    assert (counts[1] - 2) * 3 * 41 == (counts[0] - 2) * sum(robust)  # 2 to check the logits' shape


@pytest.mark.parametrize('eps, message', [
    ([], 'expected one or more'), (['0.1', '0.1'], 'different radii'), (['8'], 'Did you mean 8/255'),
    (['x'], "eps = 'x'"), (['-0.1'], 'greater than 0')], ids=['none', 'twice', 'unit', 'text', 'negative'])
def test_radii_are_checked(eps, message):
    with pytest.raises(ValueError, match=message):
        robustness_curve(Threshold(), X, Y, eps=eps)


def test_accuracy_per_class():
    y = torch.tensor([0, 2, 2, 0, 2])
    found = accuracy_by_class(
        y, clean=torch.tensor([1, 1, 0, 1, 1]).bool(), robust=torch.tensor([0, 1, 0, 1, 0]).bool())
    assert [(e.label, e.clean, e.robust) for e in found] == [
        (0, Accuracy(2, 2), Accuracy(1, 2)), (2, Accuracy(2, 3), Accuracy(1, 3))]
