import math

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_paf  # noqa: F401
from timm_paf.attacks import FGSM, PGD, eval_mode

EPS = 8 / 255


@pytest.fixture
def network():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(512, 10))
    model(torch.rand(4, 1, 8, 8))
    return model


@pytest.fixture
def batch():
    return torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,))


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


class NoWaiting(TorchDispatchMode):
    """Fails where a value is asked for on the host, which on a GPU waits for the device."""
    waits = ('aten._local_scalar_dense', 'aten.nonzero', 'aten.item', 'aten.equal', 'aten.masked_select')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.waits), f'{func} waits for the device'
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('eps, step_size, steps, random_start', [
    (EPS, None, 10, True), ('8/255', '2/255', 3, False), (1., 1., 1, True), ('1/255', '8/255', 5, True),
], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_result_is_feasible(network, batch, eps, step_size, steps, random_start, dtype):
    x, y = batch[0].to(dtype), batch[1]
    x[0], x[1] = 0, 1  # on the edges of the pixel range
    attack = PGD(eps=eps, step_size=step_size, steps=steps, random_start=random_start)
    x_adv = attack(network.to(dtype), x, y)
    assert (x_adv.dtype, x_adv.shape, x_adv.requires_grad) == (dtype, x.shape, False)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).abs() <= attack.eps + torch.finfo(dtype).eps).all()
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize('settings', [
    {}, dict(norm='l2', eps=1), dict(norm='l1', eps=3), dict(step_rule='momentum'), dict(step_rule='cosine'),
    dict(loss='kl'), dict(loss='margin'), dict(loss='dlr'), dict(mode='train'),
], ids=str)
def test_nothing_waits_for_the_device(network, batch, settings):
    attack = PGD(**{'eps': EPS, 'steps': 3, **settings})
    with NoWaiting():
        attack(network, *batch)
        attack(network, *batch, seeds=torch.arange(16))
    with pytest.raises(AssertionError, match='waits for the device'), NoWaiting():
        attack.eps * batch[0].sum().item()


def test_no_gradient_of_a_parameter_is_computed(batch):
    """Alpha and beta would cost a reduction over every activation map at every step."""
    model = timm.create_model('wrn10_2_pssilu', in_chans=1)
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient))
    PGD(eps=EPS, steps=1)(model, *batch)
    assert not seen


def test_starts_come_from_the_attacks_own_generator(network, batch):
    attack, twin = PGD(eps=EPS, seed=1), PGD(eps=EPS, seed=1)
    first, second = attack(network, *batch), attack(network, *batch)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    assert torch.equal(twin(network, *batch), first)
    resumed = PGD(eps=EPS, seed=7)
    resumed.load_state_dict(twin.state_dict())
    assert torch.equal(resumed(network, *batch), second)
    assert not torch.equal(PGD(eps=EPS, seed=2)(network, *batch), first)
    given = torch.Generator().manual_seed(1)
    assert torch.equal(PGD(eps=EPS, seed=44)(network, *batch, generator=given), first)


@pytest.mark.parametrize('rule, loss', [('fixed', 'ce'), ('cosine', 'margin'), ('momentum', 'ce')])
def test_it_is_what_a_second_implementation_is(network, batch, rule, loss):
    """A bare loop over signs in float64, written for this test alone."""
    x, y = batch[0].double(), batch[1]
    network.double().eval()
    x_ref, total = x.clone(), 0
    for i in range(10):
        x_ref = x_ref.detach().requires_grad_()
        logits = network(x_ref)
        other = logits.masked_fill(nn.functional.one_hot(y, 10).bool(), -1e9).max(1).values
        value = nn.functional.cross_entropy(logits, y, reduction='sum') if loss == 'ce' else (
            other - logits[range(16), y]).sum()
        value.backward()
        total = (total if rule == 'momentum' else 0) + x_ref.grad / x_ref.grad.abs().sum((1, 2, 3), keepdim=True)
        step = 0.01 * (0.5 + 0.5 * math.cos(math.pi * i / 10) if rule == 'cosine' else 1)
        x_ref = torch.min(torch.max(x_ref.detach() + step * total.sign(), x - 0.05), x + 0.05).clamp(0, 1)
    x_adv = PGD(eps=0.05, step_size=0.01, steps=10, random_start=False, step_rule=rule, loss=loss)(network, x, y)
    torch.testing.assert_close(x_adv, x_ref, rtol=0, atol=1e-12)


def test_fgsm_is_one_step(network, batch):
    x, y = batch[0].requires_grad_(), batch[1]
    nn.functional.cross_entropy(network.eval()(x), y).backward()
    with torch.no_grad():  # changes nothing
        x_adv = FGSM(eps='4/255')(network, x, y)
    torch.testing.assert_close(x_adv, (x + 4 / 255 * x.grad.sign()).clamp(0, 1).detach())


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_eps_and_step_may_be_set_between_calls(network, batch, norm):
    """As a schedule does, from 0 on."""
    attack = PGD(eps=0.5, norm=norm, step_size=0.2, random_start=False)
    attack.eps = 0.
    assert torch.equal(attack(network, *batch), batch[0])
    attack.eps, attack.step_size = 0.1, 0.05
    expected = PGD(eps=0.1, norm=norm, step_size=0.05, random_start=False)(network, *batch)
    assert torch.equal(attack(network, *batch), expected)


def test_clean_logits_are_computed_once_without_a_graph(network, batch):
    """And not at all if they are given; the divergence is from what is given."""
    calls = []
    network.register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    attack = PGD(eps=EPS, steps=4, loss='kl', seed=3)
    first = attack(network, *batch)
    assert calls == [False, True, True, True, True]
    with eval_mode(network), torch.no_grad():
        logits = network(batch[0])
    calls.clear()
    assert torch.equal(PGD(eps=EPS, steps=4, loss='kl', seed=3)(network, *batch, clean_logits=logits), first)
    assert calls == [True] * 4
    other = PGD(eps=EPS, steps=4, loss='kl', seed=3)(network, *batch, clean_logits=-logits)
    assert not torch.equal(other, first)


@pytest.mark.parametrize('settings, message', [
    (dict(eps=8), 'Did you mean 8/255'), (dict(eps=EPS, steps=0), 'steps = 0'),
    (dict(eps=EPS, steps=1.5), 'steps = 1.5'), (dict(eps=EPS, step_size=-1), 'step_size = -1'),
    (dict(eps=EPS, norm='l9'), "norm = 'l9'"), (dict(eps=EPS, loss='hinge'), "loss = 'hinge'"),
    (dict(eps=EPS, restarts=0), 'restarts = 0'), (dict(eps=EPS, target_classes=True), 'target_classes = True'),
    (dict(eps=EPS, mode='val'), "mode = 'val'"), (dict(eps=EPS, step_rule='adam'), "step_rule = 'adam'"),
    (dict(eps=EPS, restarts=2, random_start=False), 'random_start'),
    (dict(eps=EPS, early_stop=True, mode='train'), "mode = 'train' with early_stop"),
], ids=str)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PGD(**settings)


@pytest.mark.parametrize('settings, changes, message', [
    ({}, dict(x=torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), 'torch.uint8'),
    ({}, dict(y=torch.zeros(3).long()), r'y has shape \(3,\)'),
    ({}, dict(seeds=torch.zeros(2)), 'seeds is a torch.float32'),
    ({}, dict(seeds=torch.zeros(2).long(), generator=torch.Generator()), 'seeds and generator'),
    ({}, dict(target=torch.zeros(2).long()), "loss = 'ce'"),
    (dict(loss='ce-targeted'), dict(target=torch.zeros(3).long()), r'target has shape \(3,\)'),
    (dict(loss='ce-targeted', mode='train'), {}, "without target in mode 'train'"),
    (dict(loss='kl'), dict(clean_logits=torch.zeros(2)), r'clean_logits has shape \(2,\)'),
    (dict(norm='l2', eps=128), {}, 'eps = 128 in l2.* 128/255'),
    (dict(norm='l1', eps=65), {}, 'eps = 65 in l1.* 64'),
    (dict(loss=lambda logits, y: logits.sum()), {}, r'loss returns .* \(\)'),
    ({}, dict(model=nn.Conv2d(1, 1, 3)), r'\(2, 1, 6, 6\); expected logits \(2, classes\)'),
    ({}, dict(model=Calls(lambda x: x.detach().flatten(1))), 'no gradient'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_bad_calls_are_named(network, settings, changes, message):
    call = {'model': network, 'x': torch.zeros(2, 1, 8, 8), 'y': torch.zeros(2).long(), **changes}
    with pytest.raises(ValueError, match=message):
        PGD(**{'eps': EPS, **settings})(**call)


def test_inference_mode_is_a_clear_error(network, batch):
    with torch.inference_mode(), pytest.raises(RuntimeError, match='no_grad'):
        PGD(eps=EPS)(network, *batch)
