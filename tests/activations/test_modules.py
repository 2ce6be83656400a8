import pytest
import torch
from torch import nn

from timm_paf.activations import ACTIVATIONS, PSSiLU, Softplus, SSiLU, activation_class, functional

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
