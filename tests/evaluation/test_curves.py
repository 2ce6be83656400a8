"""Curves of a model whose distance to the boundary is known for every image."""
import pytest
import torch
from torch import nn

from timm_paf.evaluation import Accuracy, accuracy_by_class, robustness_curve
from timm_paf.evaluation.curves import chance_warning


def test_curve_is_the_closed_form(ramp):
    model, x, y, distance = ramp
    curve = robustness_curve(model, x, y, eps=['0.105', '0/255', 0.015, '14/255'], steps=5)
    assert [point.eps for point in curve.points] == ['0/255', '0.015', '14/255', '0.105']
    for point in curve.points:
        expected = Accuracy(int((point.eps_value < distance).sum()) if point.eps_value else 41, 41)
        assert point.worst == point.alone == expected
    assert (curve.attack, curve.norm, curve.steps, curve.seed) == ('PGD-5', 'linf', 5, 0)


class Gap(nn.Module):
    """Breaks at 0.04 to 0.06 from the mean pixel 1/2: a large step passes over the hole."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        distance = (x.flatten(1).mean(1) - 0.5).abs()
        return torch.where(((distance < 0.06) & (distance > 0.04))[:, None], -self.linear(x), self.linear(x))


def test_worst_case_includes_smaller_radii(ramp):
    # the gradient never points into the hole: only the first step of a small radius lands there
    x = torch.full((1, 1, 4, 4), 0.58)
    curve = robustness_curve(Gap(ramp[0]), x, torch.ones(1, dtype=torch.int64), eps=['0.03', '0.07'], steps=1)
    small, large = curve.points
    assert small.alone == small.worst == large.worst == Accuracy(0, 1) and large.alone == Accuracy(1, 1)


@pytest.mark.parametrize('eps, message', [
    ([], 'expected one or more'), (['0.1', '0.1'], 'different radii'), (['8'], 'Did you mean 8/255'),
    (['x'], "eps = 'x'"), (['-0.1'], 'greater than 0')], ids=['none', 'twice', 'unit', 'text', 'negative'])
def test_radii_are_checked(eps, message, ramp):
    with pytest.raises(ValueError, match=message):
        robustness_curve(*ramp[:3], eps=eps)


def test_accuracy_per_class():
    y = torch.tensor([0, 2, 2, 0, 2])
    found = accuracy_by_class(
        y, clean=torch.tensor([1, 1, 0, 1, 1]).bool(), robust=torch.tensor([0, 1, 0, 1, 0]).bool())
    assert [(e.label, e.clean, e.robust) for e in found] == [
        (0, Accuracy(2, 2), Accuracy(1, 2)), (2, Accuracy(2, 3), Accuracy(1, 3))]


@pytest.mark.parametrize('correct, counts, at_chance', [
    (25, [25, 25, 25, 25], True), (10, [25, 25, 25, 25], True), (30, [25, 25, 25, 25], True),
    (60, [25, 25, 25, 25], False), (90, [90, 10], True), (99, [90, 10], False), (1150, [1000] * 10, False),
    (1020, [1000] * 10, True), (30, [30], False)], ids=str)
def test_accuracy_at_chance(correct, counts, at_chance):
    """Chance is the share of the most frequent class; images of one class have none."""
    y = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    assert bool(chance_warning(torch.arange(len(y)) < correct, y)) == at_chance
