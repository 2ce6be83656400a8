"""One row of numbers for a network's activations, against the tensors and closed forms."""
import math

import pytest
import timm
import torch
from torch import nn

from timm_paf import activation_summary, paf_parameters
from timm_paf.activations import PSiLU, PSoftplus, PSSiLU


def test_one_activation():
    model = timm.create_model('wrn10_2_psoftplus', in_chans=1, act_kwargs=dict(alpha=2.))
    row = activation_summary(model)
    assert list(row) == ['alpha', 'alpha_grad', 'finite_curvature', 'negative_mean', 'negative_min', 'slope_left']
    assert all(type(value) is float for value in row.values())
    assert row['alpha'] == 2 and math.isnan(row['alpha_grad'])
    assert row['finite_curvature'] == pytest.approx(2 / 4)  # alpha/4, at 0
    assert row['negative_mean'] == pytest.approx(math.pi ** 2 / 12 / 4 / 8, rel=1e-5)  # of log(1 + exp(2x))/2 over 8
    assert (row['negative_min'], row['slope_left']) == (0, 0)
    (alpha,) = paf_parameters(model).values()
    alpha.grad = torch.tensor([-3.])
    assert activation_summary(model)['alpha_grad'] == 3


@pytest.mark.parametrize('sharing, names', [
    ('stage', ['layer1.0.act1.alpha', 'layer2.0.act1.alpha', 'layer3.0.act1.alpha', 'act.alpha']),
    ('layer', ['alpha_mean', 'alpha_min', 'alpha_max']), ('channel', ['alpha_mean', 'alpha_min', 'alpha_max']),
])
def test_several_are_named_by_place_and_many_summed_up(sharing, names):
    model = timm.create_model('wrn10_2_pssilu', in_chans=1, act_sharing=sharing)
    model(torch.rand(2, 1, 8, 8)).square().mean().backward()
    alphas = [p for name, p in paf_parameters(model).items() if name.endswith('alpha')]
    with torch.no_grad():
        for i, alpha in enumerate(alphas):
            alpha.fill_(1. + i)
    row = activation_summary(model)
    assert [name for name in row if 'alpha' in name and 'grad' not in name] == names
    values = torch.cat([alpha.detach().flatten() for alpha in alphas])
    if sharing == 'stage':
        assert [row[name] for name in names] == values.tolist()
        assert row['layer2.0.act1.alpha_grad'] == pytest.approx(alphas[1].grad.abs().item())
    else:
        assert row['alpha_mean'] == pytest.approx(values.mean().item(), rel=1e-6)
        assert [row['alpha_min'], row['alpha_max']] == [values.min().item(), values.max().item()]
        norm = torch.cat([alpha.grad for alpha in alphas]).norm().item()
        assert row['alpha_grad'] == pytest.approx(norm, rel=1e-5)
        assert row['finite_curvature'] == pytest.approx(row['alpha_mean'] / 2, rel=1e-3)  # of alpha x sigmoid at 0


def test_two_kinds_among_many():
    model = nn.Sequential(*(PSiLU() for _ in range(4)), *(PSoftplus(alpha=3.) for _ in range(4)))
    row = activation_summary(model)
    assert row['psilu.alpha_mean'] == 1 and row['psoftplus.alpha_mean'] == 3


@pytest.mark.parametrize('value, slope', [(math.nan, math.nan), (math.inf, math.nan), (-13382., -99), (0.2, -0.25)])
def test_parameters_outside_their_range(value, slope):
    """The row shows them unchanged; the shape is that at the edge of the range."""
    act = PSSiLU()
    with torch.no_grad():
        act.beta.fill_(value)
    row = activation_summary(act)
    assert (row['beta'], row['slope_left']) == pytest.approx((value, slope), nan_ok=True)
    assert list(row)[:4] == ['alpha', 'beta', 'alpha_grad', 'beta_grad']


def test_none():
    assert activation_summary(timm.create_model('wrn10_2_relu')) == {}
