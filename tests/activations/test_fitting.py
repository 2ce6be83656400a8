"""Parameters with which an activation starts nearest to another one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timm_paf import convert_activations
from timm_paf.activations import ACTIVATIONS, PSiLU
from timm_paf.activations.fitting import fit_activation

X = torch.cat([torch.linspace(-8, 8, 3201), torch.linspace(-0.1, 0.1, 1001)]).double()


@pytest.mark.parametrize('name, old, expected', [
    ('prelu0', F.relu, {'alpha': 0.}), ('preluplus', F.relu, {'alpha': 1.}), ('reblu', F.relu, {'alpha': 0.}),
    ('psilu', F.silu, {'alpha': 1.}), ('psoftplus', F.softplus, {'alpha': 1.}), ('pelu', F.elu, {'alpha': 1.}),
    ('prelu0', lambda x: F.leaky_relu(x, 0.2), {'alpha': 0.2}), ('psilu', lambda x: x * torch.sigmoid(1.702 * x),
                                                                 {'alpha': 1.702}),
    ('pssilu', F.silu, {'alpha': 1., 'beta': 1e-8}),
], ids=lambda v: getattr(v, '__name__', str(v)))
def test_fit_finds_equal_functions(name, old, expected):
    fit = fit_activation(name, old)
    assert fit.deviation < 1e-6
    assert fit.values == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize('name, old', [
    ('pssilu', F.relu), ('psoftplus', F.relu), ('psilu', F.relu), ('pssilu', F.gelu), ('psoftplus', F.silu),
    ('pelu', F.gelu), ('reblu', F.gelu), ('pssilu', F.elu),
], ids=lambda v: getattr(v, '__name__', str(v)))
def test_fit_cannot_be_bettered(name, old):
    """No point of an independent search comes closer than the fit by more than a twentieth."""
    fit = fit_activation(name, old)
    target = old(X)
    specs = {label: spec for label, spec in ACTIVATIONS[name].parameter_specs.items() if spec.learnable}
    best = float('inf')
    generator = torch.Generator().manual_seed(0)

    def deviation(values):
        with torch.no_grad():
            return (ACTIVATIONS[name](**values, dtype=torch.float64)(X) - target).abs().max().item()

    for _ in range(1500):
        values = {}
        for label, spec in specs.items():
            u = float(torch.rand(1, generator=generator))
            values[label] = 0.9 * u if label == 'beta' else max(10 ** (6 * u - 4), spec.least, 1e-4)
        best = min(best, deviation(values))
    found = deviation(fit.values)
    assert fit.deviation == pytest.approx(found, rel=0.02, abs=1e-9)
    assert found <= 1.05 * best


def test_under_a_default_device_the_fit_is_made_on_the_cpu():
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        report = convert_activations(model, 'psoftplus')
    assert model[1].alpha.is_meta and 0 < report.max_deviation < 0.01


def test_an_old_activation_in_half_precision_is_fitted():
    model = nn.Sequential(PSiLU(alpha=2.5)).half()
    report = convert_activations(model, 'psilu', match=PSiLU)
    assert model[0].alpha.dtype == torch.float16 and model[0].alpha.item() == 2.5 and report.max_deviation < 1e-6
