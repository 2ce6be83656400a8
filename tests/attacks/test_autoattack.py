import random
import sys

import pytest
import torch
from torch import nn

from timm_paf.attacks import autoattack, check_images


@pytest.fixture(scope='module')
def trained():
    """A small network that has learned something, and images that it mostly gets right."""
    torch.manual_seed(0)
    x, y = torch.rand(120, 1, 8, 8), torch.arange(120) % 10
    x = (0.75 * x + 0.25 * torch.rand(10, 1, 8, 8)[y]).contiguous()
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x[:24], y[:24]


ATTACKS = ['apgd-ce', 'apgd-t', 'fab-t']


def test_verdicts_are_the_packages_own(trained):
    from pyautoattack import AutoAttack
    model, x, y = trained
    result = autoattack(model, x, y, eps=0.05, version='custom', attacks=ATTACKS, batch_size=10, seed=3)
    model.eval()
    direct = AutoAttack(model, norm='Linf', eps=0.05, seed=3, version='custom', attacks=ATTACKS, device='cpu')
    direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = 9
    x_adv, _ = direct.run_standard_evaluation(x, y, batch_size=10)
    with torch.no_grad():
        standing = model(x_adv).argmax(1) == y
    model.train()
    assert torch.equal(result.robust, standing)
    torch.testing.assert_close(result.x_adv, x_adv)
    assert 0 < standing.sum() < len(x)  # else this test says nothing
    assert result.components == tuple(ATTACKS)


def test_verdicts_belong_to_the_images(trained):
    model, x, y = trained
    result = autoattack(model, x, y, eps=0.05, version='custom', attacks=['apgd-ce'])
    with torch.no_grad():
        correct = model.eval()(result.x_adv).argmax(1) == y
    model.train()
    assert torch.equal(correct & result.clean, result.robust)
    assert (result.x_adv - x).abs().max() <= 0.05 + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1


def test_everything_is_left_as_found(trained):
    model, x, y = trained
    model.train().zero_grad()  # the package, called directly, leaves gradients behind
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()

    def tracer(*_):
        return None

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        autoattack(model, x[:4], y[:4], eps=0.1, version='custom', attacks=['apgd-ce', 'fab-t'])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    model.train()
    model[0].weight.grad = None


class Dynamic(nn.Module):
    """A model that differentiates while it predicts, which the package flags."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            torch.autograd.grad(self.model(z).sum(), z)
        return self.model(x)


def test_one_models_warning_does_not_stick_to_the_next(trained):
    model, x, y = trained
    settings = dict(eps=0.1, version='custom', attacks=['apgd-ce'])
    assert any('dynamic' in text for text in autoattack(Dynamic(model), x[:2], y[:2], **settings).warnings)
    assert autoattack(model, x[:2], y[:2], **settings).warnings == ()


def test_progress_is_told(trained):
    model, x, y = trained
    seen = []
    autoattack(
        model, x[:9], y[:9], eps=1e-4, version='custom', attacks=['apgd-ce', 'apgd-t'], batch_size=5,
        progress=lambda *args: seen.append(args))
    assert seen == [('apgd-ce', 1, 2), ('apgd-ce', 2, 2), ('apgd-t', 1, 2), ('apgd-t', 2, 2)]


@pytest.mark.parametrize('classes, left_out', [(2, 1), (3, 1), (5, 0)])
def test_any_number_of_classes(classes, left_out):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    x = torch.rand(4, 1, 8, 8)
    y = model(x).argmax(1)
    result = autoattack(model, x, y, eps=0.2, version='custom', attacks=['apgd-ce', 'apgd-t', 'fab-t'])
    assert len(result.components) == 3 - left_out and len(result.warnings) == left_out
    assert result.clean.all() and not result.robust.any()


@pytest.mark.parametrize('x, y, logits, message', [
    (torch.full((2, 1, 4, 4), 1.5), torch.zeros(2).long(), 3, r'images lie in \[1.5, 1.5\]; expected \[0, 1\]'),
    (torch.full((2, 1, 4, 4), float('nan')), torch.zeros(2).long(), 3, r'expected \[0, 1\]'),
    (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), 3, 'expected images'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), 3, 'one label for each of 2'),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]), 3, 'from 0 to 3; expected int64 from 0 to 2'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(2), 3, 'labels are torch.float32'),
], ids=['range', 'nan', 'uint8', 'count', 'label', 'label dtype'])
def test_bad_input_is_named(x, y, logits, message):
    with pytest.raises(ValueError, match=message):
        check_images(nn.Sequential(nn.Flatten(), nn.Linear(16, logits)), x, y, device=torch.device('cpu'))


@pytest.mark.parametrize('model, message', [
    (nn.Identity(), 'expected logits'),
    (nn.Sequential(nn.Flatten(), nn.Threshold(2., float('nan'))), 'NaN or infinite'),
], ids=['shape', 'nan'])
def test_bad_models_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        autoattack(model, torch.rand(2, 1, 4, 4), torch.zeros(2).long(), eps=0.1)


@pytest.mark.parametrize('settings, message', [
    (dict(version='plus'), "version = 'plus'"), (dict(version='standard', attacks=['square']), 'or custom with one'),
    (dict(version='custom', attacks=['pgd']), r"attacks = \['pgd'\]"), (dict(norm='l2'), "norm = 'l2'"),
    (dict(eps=0), 'eps = 0'),
], ids=str)
def test_bad_settings_are_named(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        autoattack(*trained, **{'eps': 0.1, **settings})
