"""AutoAttack against the package called directly, image by image, and what surrounds it."""
import copy
import random
import sys

import pyautoattack
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings, autoattack, check_images

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
EPS = {  # by channels, each leaves some of the images standing
    1: {'linf': 0.06, 'l2': 0.4, 'l1': 1.2}, 3: {'linf': 0.06, 'l2': 0.7, 'l1': 3.5}}
ALL = ['apgd-ce', 'apgd-dlr', 'apgd-t', 'fab-t', 'fab', 'square']
STANDARD = ['apgd-ce', 'apgd-t', 'fab-t', 'square']


def learned(channels=1, classes=10):
    """A small network that has learned something, in train mode, and images that it mostly gets right."""
    torch.manual_seed(0)
    x, y = torch.rand(120, channels, 8, 8), torch.arange(120) % classes
    x = (0.75 * x + 0.25 * torch.rand(classes, channels, 8, 8)[y]).contiguous()
    x[:, :, :2] = x[:, :, :2].round()  # pixels at 0 and 1, as real images have them
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(), nn.Linear(512, classes))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x[:24], y[:24]


@pytest.fixture(scope='module')
def trained():
    return learned()


@pytest.fixture
def short(monkeypatch):
    """The package with a tenth of its iterations, for whoever makes one of its objects."""
    original = pyautoattack.AutoAttack.__init__

    def shortened(self, *args, **kwargs):
        original(self, *args, **kwargs)
        for apgd in (self.apgd, self.apgd_targeted):
            apgd.n_iter = apgd.n_iter_orig = 12
            apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = 3, 1, 1
        self.apgd.n_restarts = min(self.apgd.n_restarts, 2)
        self.fab.n_iter, self.fab.n_restarts = 6, min(self.fab.n_restarts, 2)
        self.square.n_queries = 60

    monkeypatch.setattr(pyautoattack.AutoAttack, '__init__', shortened)


def directly(model, x, y, *, norm, eps, attacks, batch_size=10, seed=3, classes=10):
    """Verdicts and images of the package itself."""
    training = model.training
    model.eval()
    direct = pyautoattack.AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version='custom', attacks=attacks)
    direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = min(9, classes - 1)
    x_adv, _ = direct.run_standard_evaluation(x, y, batch_size=batch_size)
    with torch.no_grad():
        standing = model(x_adv).argmax(1) == y
    model.zero_grad()
    model.train(training)
    return standing, x_adv


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('attacks', [ALL, *[[name] for name in ALL]], ids=['+'.join(ALL), *ALL])
def test_verdicts_are_the_packages_own(trained, short, norm, attacks):
    model, x, y = trained
    settings = dict(norm=norm, eps=EPS[1][norm], attacks=attacks, batch_size=10, seed=3)
    standing, x_adv = directly(model, x, y, **settings)
    result = autoattack(model, x, y, version='custom', **settings)
    assert torch.equal(result.robust, standing)
    plain = autoattack(model, x, y, version='custom', spare=False, **settings)
    assert torch.equal(plain.robust, standing) and torch.equal(plain.x_adv, x_adv)
    assert sum(run.forwards for run in result.runs) <= sum(run.forwards for run in plain.runs)
    if attacks == ALL:
        assert 0 < standing.sum() < result.clean.sum()  # else this test says nothing


@pytest.mark.parametrize('seed', range(2))
def test_verdicts_hold_at_any_eps(trained, short, seed):
    """From nearly all standing to nearly none: batches that shrink early, late and to nothing."""
    model, x, y = trained
    for eps in (0.05, 0.07, 0.08, 0.3):
        settings = dict(norm='linf', eps=eps, attacks=STANDARD, batch_size=24, seed=seed)
        standing, _ = directly(model, x, y, **settings)
        assert torch.equal(autoattack(model, x, y, version='custom', **settings).robust, standing)


@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('channels', [1, 3])
def test_the_standard_version_is_the_packages_own(norm, channels):
    model, x, y = learned(channels)
    result = autoattack(model, x, y, norm=norm, eps=EPS[channels][norm], batch_size=10, seed=3)
    model.eval()
    direct = pyautoattack.AutoAttack(model, norm=NORMS[norm], eps=EPS[channels][norm], seed=3)
    x_adv, _ = direct.run_standard_evaluation(x, y, batch_size=10)
    with torch.no_grad():
        assert torch.equal(result.robust, model(x_adv).argmax(1) == y)
    assert [run.name for run in result.runs] == ['apgd-ce', 'apgd-t', 'fab-t', 'square']


def test_fooled_images_cost_nothing_more(trained):
    """Every image falls at once: a pass or two instead of 101."""
    model, x, y = trained
    settings = dict(eps=0.5, version='custom', attacks=['apgd-ce'])
    sparing, whole = autoattack(model, x, y, **settings), autoattack(model, x, y, spare=False, **settings)
    assert not sparing.robust.any() and not whole.robust.any()
    assert whole.runs[0].backwards == 101 * int(whole.clean.sum())
    assert sparing.runs[0].backwards < 0.1 * whole.runs[0].backwards


def test_square_does_not_ask_twice(trained):
    """On one channel many proposals of single pixels are the image itself."""
    model, x, y = trained
    settings = dict(eps=0.01, version='custom', attacks=['square'])
    sparing, whole = autoattack(model, x, y, **settings), autoattack(model, x, y, spare=False, **settings)
    assert torch.equal(sparing.robust, whole.robust) and sparing.robust.any()
    assert sparing.runs[0].forwards < 0.75 * whole.runs[0].forwards


def test_verdicts_belong_to_the_images(trained, short):
    model, x, y = trained
    result = autoattack(model, x, y, eps=0.05, version='custom', attacks=ALL, batch_size=7)
    with torch.no_grad():
        correct = model.eval()(result.x_adv).argmax(1) == y
    model.train()
    assert torch.equal(correct, result.robust)
    assert (result.x_adv - x).abs().max() <= 0.05 + 1e-6
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    unchanged = (result.x_adv == x).flatten(1).all(1)
    assert torch.equal(unchanged, result.robust | ~result.clean)


def test_the_table_says_what_broke_an_image(trained, short):
    model, x, y = trained
    y = y.clone()
    y[0] = (y[0] + 1) % 10  # wrong from the start
    result = autoattack(model, x, y, eps=0.06, version='custom', attacks=['apgd-ce', 'square', 'apgd-t'], batch_size=10)
    assert result.broken_by[0] == 'clean' and not result.clean[0]
    assert [name is None for name in result.broken_by] == result.robust.tolist()
    standing = int(result.clean.sum())
    for run in result.runs:
        assert run.attacked == standing and run.broken == result.broken_by.count(run.name)
        standing -= run.broken
    assert standing == int(result.robust.sum()) and result.runs[0].broken > 0
    first = autoattack(model, x, y, eps=0.06, version='custom', attacks=['apgd-ce'], batch_size=10)
    assert torch.equal(first.robust, result.verdicts()['apgd-ce'] & result.clean)


def test_everything_is_left_as_found(trained):
    model, x, y = trained
    model.train().zero_grad()  # the package, called directly, leaves gradients behind
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    counter = dict(pyautoattack.checks.funcs)
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
    assert pyautoattack.checks.funcs == counter
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


class OfTheBatch(nn.Module):
    """Logits that depend on the other images: batch statistics in eval mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x - x.mean() + 0.5)


def test_a_model_that_mixes_images_is_not_spared(trained, short):
    model, x, y = trained
    settings = dict(norm='linf', eps=0.05, attacks=['apgd-ce', 'square'], batch_size=10, seed=0)
    mixing = OfTheBatch(model)
    result = autoattack(mixing, x, y, version='custom', **settings)
    assert any('no pass is spared' in text for text in result.warnings)
    whole = autoattack(mixing, x, y, version='custom', spare=False, **settings)
    assert torch.equal(whole.x_adv, result.x_adv)


def test_images_outside_the_ball_do_not_count(trained, monkeypatch):
    model, x, y = trained
    monkeypatch.setattr(
        pyautoattack.autoattack.APGDAttack, 'perturb', lambda self, x, y: (1 - x).clamp(0, 1))
    result = autoattack(model, x, y, eps=0.01, version='custom', attacks=['apgd-ce'])
    assert torch.equal(result.robust, result.clean) and torch.equal(result.x_adv, x)
    assert any('left the ball' in text for text in result.warnings)


def test_progress_is_told(trained, short, monkeypatch):
    monkeypatch.setattr('timm_paf.attacks.autoattack_progress._INTERVAL', 0.)
    model, x, y = trained
    seen = []
    result = autoattack(
        model, x[:9], y[:9], eps=0.06, version='custom', attacks=['apgd-ce', 'apgd-t'], batch_size=5,
        progress=lambda *args: seen.append(args))
    correct = int(result.clean.sum())
    ends = [s[:3] for s in seen if s[1] == s[2]]
    assert ends == [(run.name, run.attacked, run.attacked) for run in result.runs] and ends[0][1] == correct
    for name in ('apgd-ce', 'apgd-t'):
        done = [s[1] for s in seen if s[0] == name]
        assert done == sorted(done) and len(done) > 5  # also inside of batches
    standing = [s[3] for s in seen]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] == correct and standing[-1] == int(result.robust.sum())
    left = [s[4] for s in seen]
    assert left[-1] == 0 and all(seconds >= 0 for seconds in left) and left[0] > left[-2]


def test_time_left_is_that_of_a_steady_pace(trained, short, monkeypatch):
    """With a clock that ticks once a pass, the time left is the number of passes left."""
    from timm_paf.attacks import autoattack_progress, autoattack_subject
    clock = [0.]
    forward = autoattack_subject.Subject.forward

    def ticking(self, x):
        clock[0] += len(x) * (2 if x.requires_grad and torch.is_grad_enabled() else 1)
        return forward(self, x)

    monkeypatch.setattr(autoattack_subject.Subject, 'forward', ticking)
    monkeypatch.setattr(autoattack_progress.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(autoattack_progress, '_INTERVAL', 0.)
    model, x, y = trained
    seen = []
    autoattack(
        model, x, y, eps=1e-6, version='custom', attacks=['apgd-ce', 'square'], batch_size=5, spare=False,
        progress=lambda *args: seen.append((clock[0], args[4])))
    end = clock[0]
    for at, left in seen[len(seen) // 4:]:
        assert left == pytest.approx(end - at, rel=0.1, abs=0.02 * end)


@pytest.mark.parametrize('classes, left_out', [(2, 1), (3, 1), (5, 0), (100, 0)])
@pytest.mark.parametrize('norm', NORMS)
def test_any_number_of_classes(short, classes, left_out, norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    x = torch.rand(4, 1, 8, 8)
    y = model(x).argmax(1)
    attacks, eps = ['square', 'apgd-ce', 'apgd-t', 'fab-t'], {'linf': 0.2, 'l2': 2., 'l1': 15.}[norm]
    result = autoattack(model, x, y, eps=eps, norm=norm, version='custom', attacks=attacks)
    assert len(result.components) == 4 - left_out and len(result.warnings) >= left_out
    assert result.clean.all() and not result.robust.any()


@pytest.mark.parametrize('change', [
    lambda model: model.to(torch.bfloat16), lambda model: model.double(),
    lambda model: model.to(memory_format=torch.channels_last),
    lambda model: nn.Sequential(Reformatted(), model)], ids=['bfloat16', 'float64', 'channels_last', 'reformatted'])
@pytest.mark.parametrize('norm', NORMS)
def test_any_dtype_and_memory_format(short, change, norm):
    model, x, y = learned(channels=3)
    settings = dict(eps=EPS[3][norm], norm=norm, version='custom', attacks=STANDARD, batch_size=12)
    plain = autoattack(model, x[:12], y[:12], **settings)
    result = autoattack(change(model), x[:12], y[:12], **settings)
    assert abs(int(result.robust.sum()) - int(plain.robust.sum())) <= 2 and plain.robust.any()
    assert result.x_adv.dtype == torch.float32


class Reformatted(nn.Module):
    def forward(self, x):
        return x.contiguous(memory_format=torch.channels_last)


def test_autocast_attacks_and_float32_verdicts(trained, short):
    model, x, y = trained
    settings = dict(eps=0.06, version='custom', attacks=['apgd-ce', 'apgd-t', 'square'], batch_size=10)
    dtypes = []
    handle = model[-1].register_forward_hook(lambda module, args, logits: dtypes.append(logits.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):  # the caller's has no say
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


class NaNForContrast(nn.Module):
    """NaN for images with many pixels at the top of the range; such are made by large perturbations."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.where((x > 0.999).flatten(1).sum(1, keepdim=True) > 40, torch.nan, self.model(x))


def test_nan_under_attack_is_told(trained, short):
    model, x, y = trained
    for spare in (True, False):
        result = autoattack(NaNForContrast(model), x, y, eps=0.9, version='custom', attacks=['square'], spare=spare)
        assert any('NaN or infinite logits under square' in text for text in result.warnings)


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


class NaNForDark(nn.Module):
    def forward(self, x):
        return torch.where(x.mean((1, 2, 3)) < 0.1, torch.nan, 1.)[:, None] * torch.ones(3)


@pytest.mark.parametrize('model, message', [
    (nn.Identity(), 'expected logits'),
    (nn.Sequential(nn.Flatten(), nn.Threshold(2., float('nan'))), 'NaN or infinite'),
    (NaNForDark(), 'NaN or infinite logits on clean images'),
], ids=['shape', 'nan', 'nan later'])
def test_bad_models_are_named(model, message):
    x = torch.rand(9, 1, 8, 8) / 2 + 0.5
    x[8] = 0
    with pytest.raises(ValueError, match=message):
        autoattack(model, x, torch.zeros(9).long(), eps=0.1, batch_size=4)


@pytest.mark.parametrize('settings, message', [
    (dict(version='plus'), "version = 'plus'"), (dict(version='standard', attacks=['square']), 'or custom with one'),
    (dict(version='custom', attacks=['pgd']), r"attacks = \['pgd'\]"), (dict(norm='l0'), "norm = 'l0'"),
    (dict(version='custom', attacks=[]), r'attacks = \[\]'), (dict(version='custom', attacks='square'), 'a list of'),
    (dict(eps=0), 'eps = 0'), (dict(eps=8), 'Did you mean 8/255'), (dict(batch_size=0), 'batch_size = 0'),
    (dict(seed=-1), 'seed = -1'), (dict(seed=None), 'seed = None'), (dict(amp_dtype=torch.float16), 'float16'),
    (dict(rank=1), 'rank = 1, world_size = 1'), (dict(world_size=2), 'without a process group'),
], ids=str)
def test_bad_settings_are_named(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        autoattack(*trained, **{'eps': 0.1, **settings})


@pytest.mark.parametrize('shape, norm', [((2, 16), 'linf'), ((2, 1, 4, 4), 'l2'), ((2, 1, 4, 4), 'l1')], ids=str)
def test_square_says_which_images_it_needs(shape, norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match='Square needs images'):
        autoattack(model, torch.rand(shape), torch.zeros(2).long(), eps=0.1, norm=norm)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_compiled_passes_give_the_same_verdicts(trained, short, norm):
    """In float64, where rounding turns no verdict; with few graphs, although batches shrink all the time."""
    model, x, y = trained
    model = copy.deepcopy(model).double()
    settings = dict(eps=EPS[1][norm], norm=norm, batch_size=10, seed=3)
    plain = autoattack(model, x, y, **settings)
    before = counters['stats']['unique_graphs']
    compiled = autoattack(model, x, y, **settings, compile=CompileSettings(backend='aot_eager'))
    assert 0 < counters['stats']['unique_graphs'] - before <= 2 * 4  # with and without gradients, for four sizes
    assert torch.equal(plain.robust, compiled.robust) and plain.broken_by == compiled.broken_by
    assert plain.warnings == compiled.warnings and 0 < plain.robust.sum() < plain.clean.sum()
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_state_of_a_compiled_run_is_not_that_of_another(trained, short, tmp_path):
    model, x, y = trained
    settings = dict(eps=EPS[1]['linf'], version='custom', attacks=['apgd-ce'], batch_size=10, state=tmp_path / 'state')
    autoattack(model, x, y, **settings)
    with pytest.raises(ValueError, match='compile'):
        autoattack(model, x, y, **settings, compile=CompileSettings(backend='aot_eager'))
