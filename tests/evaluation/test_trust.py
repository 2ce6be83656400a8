"""Networks with usable gradients give no warning; each way of masking gradients gives the expected ones."""
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from timm_paf.attacks import ThreatModel
from timm_paf.data import digits_splits
from timm_paf.evaluation import Accuracy, check_trust
from timm_paf.evaluation.trust_probe import Probe

_spec = importlib.util.spec_from_file_location('_masked', Path(__file__).with_name('masked.py'))
masked = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(masked)

THREAT = ThreatModel(eps='0.1')
MASKED = {
    'quantised': (masked.Quantised, {'gradients', 'more steps', 'unbounded attack', 'black box'}),
    'saturated': (masked.Saturated, {'gradients', 'more steps', 'unbounded attack'}),
    'noisy': (masked.Noisy, {'deterministic logits'}),
    'detached': (masked.Detached, {'gradients', 'more steps', 'random noise', 'unbounded attack', 'black box'}),
    'nan': (masked.NaNSlope, {'gradients', 'more steps', 'unbounded attack', 'black box'}),
    'shattered': (masked.Shattered, {'more steps', 'unbounded attack', 'black box'}),
}


def warnings(report):
    return {check.name for check in report.warnings}


@pytest.mark.slow
@pytest.mark.parametrize('eps', ['0.03', '0.1', '0.2', '0.3'])
@pytest.mark.parametrize('network', ['robust_network', 'plain_network'])
def test_honest_networks_give_no_warning_with_all_iterations(network, eps, digits, request):
    report = check_trust(request.getfixturevalue(network), *digits, threat=ThreatModel(eps=eps))
    assert report.warnings == () and report.images == 256


@pytest.mark.usefixtures('short_autoattack')
@pytest.mark.parametrize('eps', ['0.03', '0.1', '0.3'])
@pytest.mark.parametrize('network', ['robust_network', 'plain_network'])
def test_honest_networks_give_no_warning(network, eps, digits, request):
    model = request.getfixturevalue(network)
    clean = Accuracy(int((model(digits[0]).argmax(1) == digits[1]).sum()), 360)
    report = check_trust(
        model, *digits, threat=ThreatModel(eps=eps), n_trust=96, n_square=6, clean=clean, trained_clean=clean)
    assert report.warnings == ()
    assert [check.status for check in report.checks] == 8 * ['pass']


@pytest.mark.usefixtures('short_autoattack')
@pytest.mark.parametrize('name', MASKED)
def test_masked_gradients_are_seen(name, digits, plain_network):
    build, expected = MASKED[name]
    report = check_trust(build(plain_network), *digits, threat=THREAT, n_trust=96, n_square=16)
    assert warnings(report) >= expected
    if name != 'noisy':
        assert 'deterministic logits' not in warnings(report)


@pytest.mark.usefixtures('short_autoattack')
def test_sign_features_are_seen(digits):
    train = digits_splits().train
    model = masked.SignFeatures().fit(torch.as_tensor(train.images), torch.as_tensor(train.labels))
    assert (model(digits[0]).argmax(1) == digits[1]).float().mean() > 0.85
    report = check_trust(model, *digits, threat=THREAT, n_trust=96, n_square=16)
    assert warnings(report) == {'gradients', 'more steps', 'random noise', 'unbounded attack', 'black box'}


@pytest.mark.usefixtures('short_autoattack')
@pytest.mark.parametrize('now, trained, status', [
    ((350, 360), (350, 360), 'pass'), ((350, 360), (351, 360), 'pass'), ((350, 360), (346, 360), 'warn'),
    ((98, 100), (9700, 10000), 'pass'), ((80, 100), (9700, 10000), 'warn'), ((98, 100), None, 'skip'),
], ids=str)
def test_clean_accuracy_of_training(now, trained, status, plain_network, digits):
    report = check_trust(
        plain_network, *digits, threat=THREAT, n_trust=8, n_square=1, clean=Accuracy(*now),
        trained_clean=trained and Accuracy(*trained))
    assert report.checks[-1].status == status


class LowPrecision(nn.Module):
    """Right in float32; under bfloat16 the sum of a large and a small number loses the small one."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.mix = nn.Linear(10, 10)
        nn.init.eye_(self.mix.weight)
        nn.init.constant_(self.mix.bias, 3e4)

    def forward(self, x):
        return self.mix(self.network(x))


@pytest.mark.usefixtures('short_autoattack')
def test_dependence_on_precision_is_seen(plain_network, digits):
    report = check_trust(LowPrecision(plain_network), *digits, threat=THREAT, n_trust=64, n_square=4)
    assert 'mixed precision' in warnings(report)


@pytest.mark.usefixtures('short_autoattack')
def test_model_and_random_state_are_as_before(robust_network, digits):
    robust_network.train()
    state = {name: value.clone() for name, value in robust_network.state_dict().items()}
    random = torch.get_rng_state()
    try:
        check_trust(robust_network, *digits, threat=THREAT, n_trust=16, n_square=2)
        assert robust_network.training and torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, state[name]) for name, value in robust_network.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in robust_network.parameters())
    finally:
        robust_network.eval()
        robust_network.zero_grad(set_to_none=True)


def test_cost_is_what_the_model_was_asked(plain_network, digits):
    seen = []
    handle = plain_network.register_forward_hook(
        lambda module, args, output: seen.append((len(args[0]), torch.is_grad_enabled())))
    report = check_trust(plain_network, *digits, threat=ThreatModel(eps=0.5), n_trust=32, batch_size=10)
    handle.remove()
    assert report.square_images == 0  # no image is robust at this radius, so all passes are those of the checks
    assert report.backwards == sum(n for n, grad in seen if grad)
    assert report.forwards == sum(n for n, grad in seen if not grad) - 2  # two images to check the logits' shape
    assert f'{report.backwards / 32:.0f} forward and backward' in report.cost


def test_checks_are_skipped_without_a_correct_image(plain_network, digits):
    wrong = (plain_network(digits[0]).argmax(1) + 1) % 10
    report = check_trust(plain_network, digits[0], wrong, threat=THREAT, n_trust=16)
    assert {check.name: check.status for check in report.checks}['gradients'] == 'skip'


@pytest.mark.parametrize('change, message', [
    (dict(n_trust=0), 'n_trust = 0'), (dict(n_square=0), 'n_square = 0')], ids=['images', 'square'])
def test_settings_are_checked(change, message, plain_network, digits):
    with pytest.raises(ValueError, match=message):
        check_trust(plain_network, *digits, threat=THREAT, **change)


@pytest.mark.parametrize('norm, order', [('linf', float('inf')), ('l2', 2), ('l1', 1)])
def test_noise_has_the_length_of_the_radius(norm, order):
    threat = ThreatModel(eps=0.3, norm=norm)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.full((50, 3, 2, 2), 0.5)
    probe = Probe(
        model, x, torch.zeros(50, dtype=torch.int64), threat=threat, batch_size=20, seed=0, device=torch.device('cpu'))
    moved = probe.noise(torch.Generator().manual_seed(1)) - x
    lengths = torch.linalg.vector_norm(moved.flatten(1), order, dim=1)
    torch.testing.assert_close(lengths, torch.full((50,), 0.3), rtol=1e-5, atol=0)
    assert moved.flatten(1).mean(1).std() > 0 and moved.flatten(1).sum(0).abs().max() < 50 * 0.3
