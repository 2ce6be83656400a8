import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_paf  # noqa: F401
from timm_paf.attacks import PGD, eval_mode

EPS = 8 / 255


def small_network(channels=1):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(10))


@pytest.fixture
def network():
    model = small_network()
    model(torch.rand(4, 1, 8, 8))
    return model


@pytest.fixture
def batch():
    return torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,))


class NoWaiting(TorchDispatchMode):
    """Fails where a value is asked for on the host, which on a GPU waits for the device."""
    waits = ('aten._local_scalar_dense', 'aten.nonzero', 'aten.item', 'aten.equal', 'aten.masked_select')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.waits), f'{func} waits for the device'
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('eps, step_size, steps, random_start', [
    (EPS, None, 10, True), ('8/255', '2/255', 3, False), (0.5, 0.7, 2, True), (1., 1., 1, True),
    ('1/255', '8/255', 5, True),
], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_result_is_feasible(network, batch, eps, step_size, steps, random_start, dtype):
    x, y = batch[0].to(dtype), batch[1]
    x[0], x[1] = 0, 1  # on the edges of the pixel range
    attack = PGD(eps=eps, step_size=step_size, steps=steps, random_start=random_start)
    x_adv = attack(network.to(dtype), x, y)
    assert (x_adv.dtype, x_adv.shape, x_adv.requires_grad) == (dtype, x.shape, False)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).abs() <= attack.eps + torch.finfo(dtype).eps).all()
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize('steps, step_size', [(1, 0.1), (7, 0.03), (40, 0.01)])
def test_linear_model_is_attacked_perfectly(steps, step_size):
    """Two classes, logits w.x and 0: the worst point of the ball is x - y eps sign(w), cut with [0, 1]."""
    torch.manual_seed(1)
    weight, x = torch.randn(12, dtype=torch.float64), torch.rand(20, 12, dtype=torch.float64)
    y = torch.randint(0, 2, (20,))
    model = nn.Linear(12, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.zeros(12, dtype=torch.float64), weight]))
    sign = torch.where(y == 1, -1., 1.)[:, None].double()
    for random_start in (False, True) if steps > 1 else (False,):
        x_adv = PGD(eps=0.1, step_size=step_size, steps=steps, random_start=random_start)(model, x, y)
        torch.testing.assert_close(x_adv, (x + 0.1 * sign * weight.sign()).clamp(0, 1))


def test_model_is_left_as_found(network, batch):
    network[1].eval()  # a frozen BatchNorm inside a training network
    network[4].weight.requires_grad_(False)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    modes = [m.training for m in network.modules()]
    asks = [p.requires_grad for p in network.parameters()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    random_state = torch.get_rng_state()
    PGD(eps=EPS)(network, *batch)
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == asks
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())  # BatchNorm's buffers too
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert [p.grad is None for p in network.parameters()] == [False] + [True] * (len(asks) - 1)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_model_is_left_as_found_when_it_fails(network, batch):
    network.train()
    with pytest.raises(ZeroDivisionError):
        PGD(eps=EPS, loss=lambda logits, y: 1 / 0)(network, *batch)
    assert all(m.training for m in network.modules()) and all(p.requires_grad for p in network.parameters())


def test_attack_runs_in_eval_mode(network, batch):
    """Dropout off and running statistics: the result is that of the same network put in eval mode beforehand."""
    network.train()
    first = PGD(eps=EPS, seed=5)(network, *batch)
    assert torch.equal(first, PGD(eps=EPS, seed=5)(network.eval(), *batch))


def test_nothing_waits_for_the_device(network, batch):
    attack = PGD(eps=EPS, steps=3)
    with NoWaiting():
        attack(network, *batch)
    with pytest.raises(AssertionError, match='waits for the device'), NoWaiting():
        attack.eps * batch[0].sum().item()


def test_no_gradient_of_a_parameter_is_computed(batch):
    """alpha and beta would cost a reduction over every activation map at every step."""
    model = timm.create_model('wrn10_2_pssilu', in_chans=1)
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.requires_grad) or t, lambda t: t):
        PGD(eps=EPS, steps=1)(model, *batch)
    assert not seen
    assert kept


def test_starts_come_from_the_attacks_own_generator(network, batch):
    attack, twin = PGD(eps=EPS, seed=1), PGD(eps=EPS, seed=1)
    first, second = attack(network, *batch), attack(network, *batch)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    assert torch.equal(twin(network, *batch), first)
    state = twin.state_dict()
    assert torch.equal(twin(network, *batch), second)
    resumed = PGD(eps=EPS, seed=7)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(network, *batch), second)
    assert not torch.equal(PGD(eps=EPS, seed=2)(network, *batch), first)
    given = torch.Generator().manual_seed(1)
    assert torch.equal(PGD(eps=EPS, seed=44)(network, *batch, generator=given), first)


def test_starts_fill_the_ball():
    x = torch.full((4000, 2), 0.5)
    starts = PGD(eps=0.1, step_size=1e-9, steps=1)(nn.Flatten(), x, torch.zeros(4000).long()) - x
    assert starts.abs().max() <= 0.1 + 1e-6
    for quantile in (0.1, 0.25, 0.5, 0.9):
        assert starts.quantile(quantile).item() == pytest.approx(0.2 * quantile - 0.1, abs=0.006)


def test_image_does_not_depend_on_its_batch(network, batch):
    attack = PGD(eps=EPS, random_start=False)
    x, y = batch
    whole = attack(network, x, y)
    torch.testing.assert_close(attack(network, x[3:5], y[3:5]), whole[3:5], rtol=0, atol=1e-6)


def test_no_grad_around_it_changes_nothing(network, batch):
    expected = PGD(eps=EPS)(network, *batch)
    with torch.no_grad():
        assert torch.equal(PGD(eps=EPS)(network, *batch), expected)


def test_more_steps_and_a_larger_ball_are_stronger(network, batch):
    x, y = batch
    with eval_mode(network), torch.no_grad():
        losses = [
            nn.functional.cross_entropy(network(PGD(eps=eps, steps=steps, random_start=False)(network, x, y)), y).item()
            for eps, steps in ((0.02, 1), (0.02, 20), (0.1, 20))]
    one_step, many_steps, large_ball = losses
    assert one_step <= 1.001 * many_steps < large_ball


def test_it_is_as_strong_as_a_second_implementation(network, batch):
    """A bare loop over cross-entropy and signs, written for this test alone."""
    x, y = batch
    network.eval()
    x_ref = x.clone()
    for _ in range(10):
        x_ref = x_ref.detach().requires_grad_()
        nn.functional.cross_entropy(network(x_ref), y, reduction='sum').backward()
        x_ref = torch.min(torch.max(x_ref.detach() + 0.01 * x_ref.grad.sign(), x - 0.05), x + 0.05).clamp(0, 1)
    x_adv = PGD(eps=0.05, step_size=0.01, steps=10, random_start=False)(network, x, y)
    torch.testing.assert_close(x_adv, x_ref, rtol=0, atol=1e-6)


def test_autocast_may_be_on(network, batch):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        x_adv = PGD(eps=EPS)(network, *batch)
    assert x_adv.dtype == torch.float32 and x_adv.isfinite().all()


@pytest.mark.parametrize('settings, message', [
    (dict(eps=0), 'eps = 0: expected a number greater than 0'), (dict(eps='x'), "eps = 'x'"),
    (dict(eps=8), 'Did you mean 8/255'), (dict(eps=EPS, steps=0), 'steps = 0: expected a whole number, 1 or more'),
    (dict(eps=EPS, steps=1.5), 'steps = 1.5'), (dict(eps=EPS, step_size=-1), 'step_size = -1'),
    (dict(eps=EPS, norm='l9'), "norm = 'l9'"), (dict(eps=EPS, loss='hinge'), "loss = 'hinge': expected ce"),
], ids=str)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PGD(**settings)


@pytest.mark.parametrize('x, y, message', [
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), 'torch.uint8 tensor'),
    (torch.zeros(2, 1, 8, 8), torch.zeros(3).long(), 'expected one label for each of 2 images'),
], ids=['integers', 'labels'])
def test_bad_batches_are_named(network, x, y, message):
    with pytest.raises(ValueError, match=message):
        PGD(eps=EPS)(network, x, y)


def test_inference_mode_is_a_clear_error(network, batch):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r'use torch\.no_grad instead'):
        PGD(eps=EPS)(network, *batch)
