"""AutoAttack compared with the package called directly, image by image; side effects; models of all kinds."""
import copy
import random
import sys

import pyautoattack
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings, autoattack

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
EPS = {1: {'linf': 0.06, 'l2': 0.4, 'l1': 1.2}, 3: {'linf': 0.06, 'l2': 0.7, 'l1': 3.5}}  # per channels; breaks some
ALL = ['apgd-ce', 'apgd-dlr', 'apgd-t', 'fab-t', 'fab', 'square']
STANDARD = ['apgd-ce', 'apgd-t', 'fab-t', 'square']


class Wrapped(nn.Module):
    """A model and what a function makes of its images and logits; counts images."""

    def __init__(self, model, before=lambda x: x, after=lambda x, logits: logits):
        super().__init__()
        self.model, self.before, self.after, self.count = model, before, after, 0

    def forward(self, x):
        self.count += len(x)
        return self.after(x, self.model(self.before(x)))


def of_the_batch(model):
    """Logits that depend on the other images of the batch, in eval mode too."""
    return Wrapped(model, before=lambda x: x - x.mean() + 0.5)


def directly(model, x, y, *, norm, eps, batch_size=10, seed=3, **which):
    """Robust images and adversarial images of the package itself."""
    training = model.training
    model.eval()
    direct = pyautoattack.AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, **which)
    x_adv, _ = direct.run_standard_evaluation(x, y, batch_size=batch_size)
    with torch.no_grad():
        robust = torch.cat([
            model(images).argmax(1) == labels
            for images, labels in zip(x_adv.split(batch_size), y.split(batch_size), strict=True)])
    model.zero_grad()
    model.train(training)
    return robust, x_adv


@pytest.mark.parametrize('norm, eps, attacks, wrap', [
    *[(norm, EPS[1][norm], ALL, Wrapped) for norm in NORMS], ('l2', 0.4, ['fab'], Wrapped),
    *[('linf', eps, ['apgd-ce', 'apgd-t', 'fab-t'], wrap) for eps in (0.05, 0.3) for wrap in (Wrapped, of_the_batch)],
    *[pytest.param(norm, EPS[1][norm], [name], Wrapped, marks=pytest.mark.slow) for norm in NORMS for name in ALL],
], ids=lambda value: getattr(value, '__name__', str(value)))
def test_result_is_that_of_the_package(trained, short, norm, eps, attacks, wrap):
    model, x, y = trained
    settings = dict(norm=norm, eps=eps, version='custom', attacks=attacks, batch_size=10, seed=3)
    package, ours = wrap(model), wrap(model)
    robust, x_adv = directly(package, x, y, **settings)
    result = autoattack(ours, x, y, **settings)
    assert torch.equal(result.x_adv, x_adv)
    assert wrap is of_the_batch or torch.equal(result.robust, robust)
    assert ours.count <= package.count + 2  # the check of the input
    if attacks == ALL:
        assert 0 < robust.sum() < result.clean.sum()  # else this test shows nothing


@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('channels', [1, 3])
def test_standard_version_is_that_of_the_package(learned, norm, channels):
    model, x, y = learned(channels)
    settings = dict(norm=norm, eps=EPS[channels][norm], batch_size=10, seed=3)
    result = autoattack(model, x, y, **settings)
    assert torch.equal(result.robust, directly(model, x, y, **settings)[0])
    assert [run.name for run in result.runs] == STANDARD


def test_images_and_broken_by_match_the_result(trained, short):
    model, x, y = trained
    y = y.clone()
    y[0] = (y[0] + 1) % 5  # misclassified without an attack
    result = autoattack(
        model, x, y, eps=0.06, version='custom', attacks=['apgd-ce', 'square', 'apgd-t'], batch_size=10)
    with torch.no_grad():
        correct = model.eval()(result.x_adv).argmax(1) == y
    model.train()
    assert torch.equal(correct, result.robust)
    assert (result.x_adv - x).abs().max() <= 0.06 + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    unchanged = (result.x_adv == x).flatten(1).all(1)
    assert torch.equal(unchanged, result.robust | ~result.clean)

    assert result.broken_by[0] == 'clean' and not result.clean[0]
    assert [name is None for name in result.broken_by] == result.robust.tolist()
    remaining = int(result.clean.sum())
    for run in result.runs:
        assert run.attacked == remaining and run.broken == result.broken_by.count(run.name)
        remaining -= run.broken
        assert int((~result.not_broken_by()[run.name]).sum()) == run.broken
    assert remaining == int(result.robust.sum()) and result.runs[0].broken > 0


def test_everything_is_left_as_found(trained, short):
    model, x, y = trained
    model = copy.deepcopy(model).train()
    model.zero_grad()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    counter = dict(pyautoattack.checks.funcs)
    states = torch.get_rng_state(), random.getstate()
    tracer, previous = (lambda *_: None), sys.gettrace()
    sys.settrace(tracer)
    try:
        autoattack(model, x[:4], y[:4], eps=0.1, version='custom', attacks=['apgd-ce', 'fab-t'])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert pyautoattack.checks.funcs == counter
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])


def differentiate(x, logits):
    """What the package reports as dynamic: a gradient inside the model."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        torch.autograd.grad(z.square().sum(), z)
    return logits


def test_a_warning_about_one_model_is_not_repeated_for_the_next(trained, short):
    model, x, y = trained
    settings = dict(eps=0.1, version='custom', attacks=['apgd-ce'])
    reported = autoattack(Wrapped(model, after=differentiate), x[:2], y[:2], **settings).warnings
    assert any('dynamic' in text for text in reported)
    assert autoattack(model, x[:2], y[:2], **settings).warnings == ()


def nan_for_contrast(x, logits):
    """NaN for images with many pixels at the top of the range, which only large perturbations make."""
    return torch.where((x > 0.999).flatten(1).sum(1, keepdim=True) > 40, torch.nan, logits)


def test_images_outside_the_ball_and_nan_logits_are_reported(trained, short, monkeypatch):
    model, x, y = trained
    with monkeypatch.context() as patch:
        patch.setattr(pyautoattack.autoattack.APGDAttack, 'perturb', lambda self, x, y: (1 - x).clamp(0, 1))
        result = autoattack(model, x, y, eps=0.01, version='custom', attacks=['apgd-ce'])
    assert torch.equal(result.robust, result.clean) and torch.equal(result.x_adv, x)
    assert any('left the ball' in text for text in result.warnings)
    result = autoattack(Wrapped(model, after=nan_for_contrast), x, y, eps=0.9, version='custom', attacks=['square'])
    assert any('NaN or infinite logits under square' in text for text in result.warnings)


@pytest.mark.parametrize('classes, left_out, norm, eps', [
    (2, 1, 'linf', 0.2), (3, 1, 'l2', 2.), (5, 0, 'l1', 15.), (100, 0, 'linf', 0.2)])
def test_any_number_of_classes(short, classes, left_out, norm, eps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    x = torch.rand(4, 1, 8, 8)
    result = autoattack(
        model, x, model(x).argmax(1), eps=eps, norm=norm, version='custom',
        attacks=['square', 'apgd-ce', 'apgd-t', 'fab-t'])
    assert len(result.components) == 4 - left_out and len(result.warnings) >= left_out
    assert result.clean.all() and not result.robust.any()


@pytest.mark.parametrize('change, norm', [
    (lambda model: model.to(torch.bfloat16), 'linf'), (lambda model: model.double(), 'l1'),
    (lambda model: model.to(memory_format=torch.channels_last), 'l2'),
    (lambda model: Wrapped(model, lambda x: x.contiguous(memory_format=torch.channels_last)), 'l1')],
    ids=['bfloat16', 'float64', 'channels_last', 'reformatted'])
def test_any_dtype_and_memory_format(learned, short, change, norm):
    model, x, y = learned(channels=3)
    x, y = x[:12], y[:12]
    settings = dict(eps=EPS[3][norm], norm=norm, version='custom', attacks=STANDARD, batch_size=12)
    plain = autoattack(model, x, y, **settings)
    result = autoattack(change(model), x, y, **settings)
    assert abs(int(result.robust.sum()) - int(plain.robust.sum())) <= 2 and plain.robust.any()
    assert result.x_adv.dtype == torch.float32


def test_autocast_in_the_attacks_and_float32_in_the_result(trained, short):
    model, x, y = trained
    settings = dict(eps=0.06, version='custom', attacks=['apgd-ce', 'apgd-t', 'square'], batch_size=10)
    dtypes = []
    handle = model[-1].register_forward_hook(lambda module, args, logits: dtypes.append(logits.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):  # autocast of the caller is off inside
        outside = autoattack(model, x, y, **settings)
    assert set(dtypes) == {torch.float32}
    result = autoattack(model, x, y, amp_dtype=torch.bfloat16, **settings)
    handle.remove()
    assert dtypes.count(torch.bfloat16) > 100
    assert torch.equal(outside.robust, autoattack(model, x, y, **settings).robust)
    with torch.no_grad():
        assert torch.equal(model.eval()(result.x_adv).argmax(1) == y, result.robust)
    model.train()
    assert 0 < result.robust.sum() < result.clean.sum()


def nan_for_dark(x, logits):
    return torch.where(x.mean((1, 2, 3)) < 0.1, torch.nan, 1.)[:, None] * torch.ones(3)


@pytest.mark.parametrize('model, message', [
    (nn.Identity(), 'expected logits'), (Wrapped(nn.Identity(), after=nan_for_dark), 'NaN or infinite logits on clean'),
], ids=['shape', 'nan'])
def test_bad_models_are_named(model, message):
    x = torch.rand(9, 1, 8, 8) / 2 + 0.5
    x[8] = 0
    with pytest.raises(ValueError, match=message):
        autoattack(model, x, torch.zeros(9).long(), eps=0.1, batch_size=4)


def test_compiled_passes_give_the_same_result(trained, short):
    """In float64, where rounding does not change a result; with few graphs, although batches become smaller."""
    model, x, y = trained
    model = copy.deepcopy(model).double()
    settings = dict(eps=EPS[1]['l2'], norm='l2', batch_size=9, seed=3, version='custom', attacks=['apgd-ce', 'fab-t'])
    plain = autoattack(model, x, y, **settings)
    before = counters['stats']['unique_graphs']
    compiled = autoattack(model, x, y, **settings, compile=CompileSettings(backend='aot_eager'))
    assert 0 < counters['stats']['unique_graphs'] - before <= 2 * 4  # with and without gradients, for four sizes
    assert torch.equal(plain.robust, compiled.robust) and plain.broken_by == compiled.broken_by
    assert plain.warnings == compiled.warnings and 0 < plain.robust.sum() < plain.clean.sum()
    assert model.training and all(p.requires_grad for p in model.parameters())
