"""Fixed parameters, and parameters that every step keeps inside their range."""
import math

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from timm_paf import convert_activations, fix_parameters, paf_parameters, project_parameters
from timm_paf.activations import ACTIVATIONS, BETA_BOUND, PSSiLU, check_parameters, functional
from timm_paf.activations.functional import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN


def act(name, **values):
    module = ACTIVATIONS[name](num_parameters=max(torch.tensor(value).numel() for value in values.values()))
    with torch.no_grad():
        for label, value in values.items():
            getattr(module, label).copy_(torch.tensor(value))
    return module


@pytest.mark.parametrize('name, given, bound, expected', [
    ('pssilu', dict(alpha=-2., beta=-0.5), 0.5, dict(alpha=-2., beta=-0.5)),
    ('pssilu', dict(beta=0.7), 0.5, dict(beta=0.5)),
    ('pssilu', dict(beta=-13382.), 0.5, dict(beta=-0.5)),
    ('pssilu', dict(beta=32.9), None, dict(beta=BETA_MAX)),
    ('pssilu', dict(beta=math.inf), 0.2, dict(beta=0.2)),
    ('pssilu', dict(beta=math.nan), 0.5, dict(beta=math.nan)),
    ('pssilu', dict(alpha=-2e4), 0.5, dict(alpha=-ALPHA_MAX)),
    ('psoftplus', dict(alpha=-1e-9), 0.5, dict(alpha=-PSOFTPLUS_ALPHA_MIN)),
    ('psoftplus', dict(alpha=0.), 0.5, dict(alpha=PSOFTPLUS_ALPHA_MIN)),
    ('prelu0', dict(alpha=1e6), 0.5, dict(alpha=1e6)),
    ('ssilu', dict(beta=0.9), 0.5, dict(beta=0.9)),
    ('pssilu', dict(beta=[-3., 0.25, 0.5, 1.]), 0.5, dict(beta=[-0.5, 0.25, 0.5, 0.5])),
], ids=str)
def test_projection(name, given, bound, expected):
    module = act(name, **given)
    project_parameters(nn.Sequential(module), beta_bound=bound)
    for label, value in expected.items():
        held = getattr(module, label).detach()
        assert_close(held, torch.tensor(value).reshape(-1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('lr, momentum', [(0.1, 0.), (1e9, 0.9)], ids=str)
def test_no_step_crosses_the_pole(lr, momentum):
    """A loss that pushes beta to 1 and above, then one that pulls it back: always inside the range."""
    module = PSSiLU()
    optimizer = torch.optim.SGD([module.beta], lr=lr, momentum=momentum)
    x = torch.linspace(-3, -0.1, 64)

    def run(sign, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (sign * module(x).mean()).backward()
            assert module.beta.grad.isfinite().all()
            optimizer.step()
            project_parameters(module)
            assert abs(module.beta.item()) <= BETA_BOUND
            assert module(x).abs().max() <= 3

    run(-1, 40)
    assert abs(module.beta.item()) == BETA_BOUND
    if lr < 1:
        run(1, 40)
        assert abs(module.beta.item()) < BETA_BOUND


@pytest.mark.parametrize('value, bound, message', [
    (0.6, 0.5, r'act1.beta = \[0.60.*expected absolute values from 0 to 0.5'), (-0.6, 0.7, None),
    (0.995, None, 'to 0.99'), (0.5, 0.5, None),
])
def test_check(value, bound, message):
    model = nn.Sequential()
    model.add_module('act1', act('pssilu', beta=value))
    if message is None:
        check_parameters(model, beta_bound=bound)
    else:
        with pytest.raises(ValueError, match=message):
            check_parameters(model, beta_bound=bound)


@pytest.mark.parametrize('sharing', ['network', 'channel'])
def test_fixed_parameters_have_their_value_everywhere_and_never_move(sharing):
    model = timm.create_model('wrn10_2_pssilu', in_chans=1, act_sharing=sharing)
    keys = set(model.state_dict())
    fix_parameters(model, {'alpha': 2.})
    assert set(model.state_dict()) == keys
    assert {name.rsplit('.')[-1] for name in paf_parameters(model)} == {'beta'}
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.rand(2, 1, 8, 8)).square().mean().backward()
    before = next(iter(paf_parameters(model).values())).clone()
    optimizer.step()
    assert all((value == 2).all() for key, value in model.state_dict().items() if key.endswith('alpha'))
    assert not torch.equal(before, next(iter(paf_parameters(model).values())))


@pytest.mark.parametrize('name, values, message', [
    ('wrn10_2_relu', dict(alpha=1.), 'has no parametric activation whose alpha to fix'),
    ('wrn10_2_psilu', dict(beta=0.1), "layer1.0.act1 is a PSiLU, which has no 'beta'; it has alpha"),
    ('wrn10_2_pssilu', dict(alpha=2., beta=1.), r'beta = 1.0: expected 0 <= \|beta\| <= 0.99'),
    ('wrn10_2_psoftplus', dict(alpha=0.), 'alpha = 0.0: expected 0.001 <='),
], ids=lambda value: value if isinstance(value, str) and value.startswith('wrn') else '')
def test_what_cannot_be_fixed_is_named_and_changes_nothing(name, values, message):
    model = timm.create_model(name, in_chans=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fix_parameters(model, values)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(paf_parameters(model)) == len(paf_parameters(timm.create_model(name)))


def test_constants_and_converted_networks():
    model = nn.Sequential(ACTIVATIONS['ssilu']())
    fix_parameters(model, {'beta': 0.1})
    x = torch.randn(5)
    assert_close(model(x), functional.ssilu(x, 0.1))
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    convert_activations(model, 'psoftplus', sharing='layer')
    fix_parameters(model, {'alpha': 4.})
    assert_close(model[1](torch.zeros(3)), torch.full((3,), math.log(2) / 4))
    assert not paf_parameters(model)
