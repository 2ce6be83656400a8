import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from timm_paf import activation_summary, fix_parameters, paf_parameters, project_parameters
from timm_paf.activations import (
    ACTIVATIONS,
    PSSiLU,
    Softplus,
    SSiLU,
    activation_class,
    check_parameters,
    functional,
    shape,
)

INITIAL = {
    'prelu0': {'alpha': 0.}, 'preluplus': {'alpha': 1.}, 'pelu': {'alpha': 1.}, 'peluplus': {'alpha': 1.},
    'psilu': {'alpha': 1.}, 'psoftplus': {'alpha': 1.}, 'reblu': {'alpha': 0.}, 'ssilu': {'beta': 0.3},
    'pssilu_fixed': {'alpha': 1., 'beta': 0.3}, 'pssilu': {'alpha': 1., 'beta': 1e-8},
}
LEARNABLE = {name: [] if name == 'ssilu' else ['alpha', 'beta'] if name == 'pssilu' else ['alpha'] for name in INITIAL}
X = torch.linspace(-6, 6, 49)


@pytest.mark.parametrize('name', INITIAL)
def test_initial_values_are_the_papers(name):
    module = ACTIVATIONS[name]()
    assert [n for n, _ in module.named_parameters()] == LEARNABLE[name]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert {n: (tuple(t.shape), t.item()) for n, t in tensors.items()} == {
        n: ((1,), pytest.approx(v)) for n, v in INITIAL[name].items()}


@pytest.mark.parametrize('name, reference', [
    ('prelu0', nn.ReLU()), ('preluplus', nn.ReLU()), ('reblu', nn.ReLU()), ('pelu', nn.ELU()), ('peluplus', nn.ELU()),
    ('psilu', nn.SiLU()), ('psoftplus', nn.Softplus()), ('pssilu', nn.SiLU()),
])
def test_new_modules_are_the_functions_they_extend(name, reference):
    torch.testing.assert_close(ACTIVATIONS[name]()(X), reference(X), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures('reference')
@pytest.mark.parametrize('name', INITIAL)
def test_module_is_the_function_of_its_parameters(name):
    module = ACTIVATIONS[name](**dict.fromkeys(INITIAL[name], 0.4))
    assert torch.equal(module(X), getattr(functional, name)(X, *[0.4] * len(INITIAL[name])))


@pytest.mark.parametrize('settings, learns', [
    (dict(), ['alpha', 'beta']), (dict(learnable=False), []), (dict(learnable={'beta': False}), ['alpha']),
    (dict(learnable={'alpha': False, 'beta': True}), ['beta']), (dict(learnable=True), ['alpha', 'beta']),
], ids=str)
def test_parameters_can_be_held(settings, learns):
    module = PSSiLU(**settings)
    assert [n for n, _ in module.named_parameters()] == learns
    assert list(module.state_dict()) and set(module.state_dict()) == {'alpha', 'beta'}
    x = X.clone().requires_grad_()
    module(x).square().sum().backward()
    assert all(getattr(module, name).grad.abs().item() > 0 for name in learns)
    assert [n for n, _ in SSiLU(learnable=True).named_parameters()] == ['beta']


def test_device_dtype_and_channels():
    module = PSSiLU(num_parameters=6, device='meta', dtype=torch.float16)
    assert module.alpha.shape == module.beta.shape == (6,)
    assert module.alpha.is_meta and module.beta.dtype == torch.float16
    assert PSSiLU(num_parameters=6)(torch.rand(2, 6, 3, 3)).shape == (2, 6, 3, 3)
    assert PSSiLU(num_parameters=6, channel_dim=-1)(torch.rand(2, 3, 6)).shape == (2, 3, 6)


@pytest.mark.usefixtures('reference')
@pytest.mark.parametrize('name', INITIAL)
def test_output_has_the_inputs_dtype_and_the_input_stays(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = X.to(dtype)
        assert ACTIVATIONS[name](dtype=torch.bfloat16, inplace=True)(x).dtype == dtype
        assert torch.equal(x, X.to(dtype))


@pytest.mark.parametrize('name, settings, message', [
    ('pssilu', dict(beta=1.), r'beta = 1.0: expected 0 <= \|beta\| <= 0.99'),
    ('pssilu', dict(alpha=float('nan')), 'alpha = nan: expected a finite number'),
    ('psoftplus', dict(alpha=0.), r'alpha = 0.0: expected 0.001 <= \|alpha\| <= 10000'),
    ('psilu', dict(beta=0.3), "PSiLU has no parameter 'beta'; it has alpha"),
    ('psilu', dict(learnable={'gamma': True}), "no parameter 'gamma'"),
    ('psilu', dict(num_parameters=0), 'num_parameters = 0: expected 1, or'),
])
def test_bad_arguments_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        ACTIVATIONS[name](**settings)


def test_unknown_names_bring_the_nearest():
    with pytest.raises(ValueError, match="unknown activation 'psilo'; did you mean psilu"):
        activation_class('psilo')
    with pytest.raises(TypeError, match='expected a name'):
        activation_class(nn.ReLU)


def test_softplus_is_torchs():
    assert torch.equal(Softplus(inplace=True)(X), nn.functional.softplus(X))


def test_repr_shows_the_values():
    assert repr(PSSiLU(alpha=2.5, learnable={'beta': False})) == 'PSSiLU(alpha=2.5, beta=1e-08 (constant))'
    assert repr(PSSiLU(num_parameters=3)) == 'PSSiLU(alpha=(3,), beta=(3,))'


class Twice(nn.Module):
    """A parametrization: the double of the learned tensor."""

    def forward(self, original):
        return 2 * original


TOOLS = {
    'none': lambda module, name: None,
    'parametrize': lambda module, name: parametrize.register_parametrization(module, name, Twice()),
    'weight_norm': lambda module, name: parametrizations.weight_norm(module, name),
    'spectral_norm': lambda module, name: parametrizations.spectral_norm(module, name),
    'prune': lambda module, name: prune.l1_unstructured(module, name, amount=1),
}


def two_places(make, tool, name):
    """A network with one activation at two places, to which a tool of torch was applied."""
    torch.manual_seed(0)
    act = make()
    TOOLS[tool](act, name)
    return nn.Sequential(nn.Linear(3, 4), act, nn.Sequential(nn.Linear(4, 4), act), nn.Linear(4, 2))


@pytest.mark.parametrize('name', ['alpha', 'beta'])
@pytest.mark.parametrize('tool', TOOLS)
def test_a_tensor_that_a_tool_of_torch_computes_trains_and_is_saved_once(tool, name):
    model, other = two_places(PSSiLU, tool, name), two_places(lambda: PSSiLU(alpha=2., beta=0.3), tool, name)
    x = torch.randn(8, 3)
    model(x).square().sum().backward()
    learned = paf_parameters(model, name)
    assert learned and all(model.get_parameter(key) is parameter for key, parameter in learned.items())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    expected = model(x).detach()
    constant = tool in ('prune', 'spectral_norm')  # one number is pruned to 0 and normalised to 1
    assert constant or any(parameter.grad.abs().sum() > 0 for parameter in learned.values())

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = model.state_dict()
    assert set(state) == set(tensors) and all(torch.equal(state[key], tensors[key]) for key in state)
    per_place = {f'2.1.{key[2:]}': value.clone() for key, value in state.items() if key.startswith('1.')}
    for form in (state, {**state, **per_place}):  # as PReLU saves it
        fresh = two_places(PSSiLU, tool, name)
        fresh.load_state_dict(form)
        torch.testing.assert_close(fresh(x), expected)
    with pytest.raises(RuntimeError, match='contradicts'):
        other.load_state_dict({**state, **{key: value + 1 for key, value in per_place.items()}})

    given = {key: parameter.detach() for key, parameter in model.named_parameters()}
    other = two_places(PSSiLU, tool, name)
    torch.testing.assert_close(torch.func.functional_call(other, given, (x,)), expected)
    assert not torch.allclose(other(x), expected)  # it keeps its own values


def test_a_parametrization_is_described_copied_and_removed():
    act = PSSiLU(alpha=2., beta=0.1)
    parametrize.register_parametrization(act, 'alpha', Twice())
    alpha = act.alpha.item()
    assert 'constant' not in repr(act) and f'alpha={alpha:.4g}' in repr(act)
    found = shape.describe(act)
    assert found.name == 'pssilu' and found.curvature == pytest.approx(alpha / 2 / 0.9) and found.smoothness == 'smooth'
    act(X).sum().backward()
    row = activation_summary(act)
    assert row['alpha'] == alpha and row['alpha_grad'] > 0
    twin = copy.deepcopy(act)
    torch.testing.assert_close(twin(X), act(X))
    with pytest.raises(ValueError, match='alpha'):
        fix_parameters(act, {'alpha': 3.})
    project_parameters(act)
    assert act.alpha.item() == alpha
    with torch.no_grad():
        next(iter(paf_parameters(act, 'alpha').values())).fill_(2e4)
    with pytest.raises(ValueError, match=r'alpha = \[40000'):
        check_parameters(act)
    alpha = act.alpha.item()
    parametrize.remove_parametrizations(act, 'alpha')
    assert type(act) is PSSiLU and list(paf_parameters(act)) == ['beta', 'alpha'] and act.alpha.item() == alpha
