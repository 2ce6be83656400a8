"""Networks with usable gradients give no warning; each way of masking gradients gives the expected ones."""
import pytest
import torch
from torch import nn

from timm_paf.attacks import ThreatModel
from timm_paf.evaluation import Accuracy, check_trust
from timm_paf.evaluation.trust_checks import training_report
from timm_paf.evaluation.trust_probe import Probe

THREAT = ThreatModel(eps='0.1')


class Masked(nn.Module):
    """A network with a change of its pixels or logits that masks its gradients."""

    def __init__(self, network, pixels=lambda x: x, logits=lambda logits, x: logits):
        super().__init__()
        self.network, self.pixels, self.logits = network, pixels, logits

    def forward(self, x):
        return self.logits(self.network(self.pixels(x)), x)


MASKED = {
    'quantised': (
        dict(pixels=lambda x: (8 * x).round() / 8), {'gradients', 'more steps', 'unbounded attack', 'black box'}),
    'saturated': (dict(logits=lambda logits, x: 1e5 * logits), {'gradients', 'more steps', 'unbounded attack'}),
    'noisy': (dict(pixels=lambda x: x + 0.2 * torch.randn_like(x)), {'deterministic logits'}),
    'outside autograd': (
        dict(pixels=lambda x: torch.from_numpy(x.detach().numpy().copy())),
        {'gradients', 'more steps', 'random noise', 'unbounded attack', 'black box'}),
    'NaN slope': (
        dict(logits=lambda logits, x: logits + 0 * (x - x).sqrt().sum((1, 2, 3))[:, None]),
        {'gradients', 'more steps', 'unbounded attack', 'black box'}),
    'rippled': (
        dict(pixels=lambda x: x + 0.02 * torch.sin(3000 * x)), {'more steps', 'unbounded attack', 'black box'}),
    # under bfloat16 the sum of a large and a small number loses the small one
    'low precision': (
        dict(logits=lambda logits, x: nn.functional.linear(logits, torch.eye(10), torch.full((10,), 3e4))),
        {'mixed precision'}),
}


def warnings(report):
    return {check.name for check in report.warnings}


@pytest.mark.parametrize('network, eps, sizes', [
    *(pytest.param(name, eps, {}, marks=pytest.mark.slow)
      for name in ('robust_network', 'plain_network') for eps in ('0.03', '0.1', '0.2', '0.3')),
    *((name, eps, dict(n_trust=96, n_square=6))
      for name, eps in (('robust_network', '0.03'), ('robust_network', '0.3'), ('plain_network', '0.1')))])
def test_honest_networks_give_no_warning(network, eps, sizes, digits, request):
    model = request.getfixturevalue(network)
    if sizes:
        request.getfixturevalue('short_autoattack')
    clean = Accuracy(int((model(digits[0]).argmax(1) == digits[1]).sum()), 360)
    report = check_trust(model, *digits, threat=ThreatModel(eps=eps), clean=clean, trained_clean=clean, **sizes)
    assert report.warnings == () and [check.status for check in report.checks] == 8 * ['pass']


@pytest.mark.usefixtures('short_autoattack')
@pytest.mark.parametrize('name', MASKED)
def test_masked_gradients_are_seen(name, digits, plain_network):
    change, expected = MASKED[name]
    found = warnings(check_trust(Masked(plain_network, **change), *digits, threat=THREAT, n_trust=96, n_square=16))
    assert found >= expected and ('deterministic logits' in found) == (name == 'noisy')


def probe(**changes):
    settings = {**dict(threat=THREAT, batch_size=20, seed=0, device=torch.device('cpu')), **changes}
    x, y = torch.full((50, 3, 2, 2), 0.5), torch.zeros(50, dtype=torch.int64)
    return Probe(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), x, y, **settings)


@pytest.mark.parametrize('now, trained, status', [
    ((350, 360), (350, 360), 'pass'), ((350, 360), (351, 360), 'pass'), ((350, 360), (346, 360), 'warn'),
    ((98, 100), (9700, 10000), 'pass'), ((80, 100), (9700, 10000), 'warn'), ((98, 100), None, 'skip'),
], ids=str)
def test_clean_accuracy_of_training(now, trained, status):
    assert training_report(probe(clean=Accuracy(*now), trained_clean=trained and Accuracy(*trained))).status == status


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


@pytest.mark.parametrize('norm, order', [('linf', float('inf')), ('l2', 2), ('l1', 1)])
def test_noise_has_the_length_of_the_radius(norm, order):
    probed = probe(threat=ThreatModel(eps=0.3, norm=norm))
    moved = probed.noise(torch.Generator().manual_seed(1)) - probed.x
    lengths = torch.linalg.vector_norm(moved.flatten(1), order, dim=1)
    torch.testing.assert_close(lengths, torch.full((50,), 0.3), rtol=1e-5, atol=0)
    assert moved.flatten(1).mean(1).std() > 0 and moved.flatten(1).sum(0).abs().max() < 50 * 0.3
