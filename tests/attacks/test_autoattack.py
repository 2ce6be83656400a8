"""AutoAttack compared with the package called directly, image by image; several processes; side effects."""
import copy
import random
import socket
import sys

import pyautoattack
import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch._dynamo.utils import counters

from timm_paf.attacks import CompileSettings, autoattack

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
EPS = {1: {'linf': 0.06, 'l2': 0.4, 'l1': 1.2}, 3: {'linf': 0.06, 'l2': 0.7, 'l1': 3.5}}  # per channels; breaks some
ALL = ['apgd-ce', 'apgd-dlr', 'apgd-t', 'fab-t', 'fab', 'square']
STANDARD = ['apgd-ce', 'apgd-t', 'fab-t', 'square']


class Counting(nn.Module):
    """Counts the images that pass through a model."""

    def __init__(self, model):
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x):
        self.count += len(x)
        return self.model(x)


class OfTheBatch(nn.Module):
    """Logits that depend on the other images of the batch, in eval mode too."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x - x.mean() + 0.5)


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


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('attacks', [ALL, *[[name] for name in ALL]], ids=['+'.join(ALL), *ALL])
def test_result_is_that_of_the_package(trained, short, norm, attacks):
    model, x, y = trained
    settings = dict(norm=norm, eps=EPS[1][norm], version='custom', attacks=attacks, batch_size=10, seed=3)
    package, ours = Counting(model), Counting(model)
    robust, x_adv = directly(package, x, y, **settings)
    result = autoattack(ours, x, y, **settings)
    assert torch.equal(result.robust, robust) and torch.equal(result.x_adv, x_adv)
    assert ours.count <= package.count + 2  # the check of the input
    if attacks == ALL:
        assert 0 < robust.sum() < result.clean.sum()  # else this test shows nothing


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('wrap', [nn.Sequential, OfTheBatch], ids=['plain', 'depends on the batch'])
def test_result_is_that_of_the_package_at_any_eps(trained, short, seed, wrap):
    model, x, y = trained
    model = wrap(model)
    for eps in (0.05, 0.07, 0.3):  # nearly all robust, some, none
        settings = dict(norm='linf', eps=eps, version='custom', attacks=STANDARD, batch_size=7, seed=seed)
        robust, x_adv = directly(model, x, y, **settings)
        result = autoattack(model, x, y, **settings)
        assert torch.equal(result.x_adv, x_adv)
        assert wrap is OfTheBatch or torch.equal(result.robust, robust)


@pytest.mark.slow
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('channels', [1, 3])
def test_standard_version_is_that_of_the_package(learned, norm, channels):
    model, x, y = learned(channels)
    settings = dict(norm=norm, eps=EPS[channels][norm], batch_size=10, seed=3)
    result = autoattack(model, x, y, **settings)
    assert torch.equal(result.robust, directly(model, x, y, **settings)[0])
    assert [run.name for run in result.runs] == STANDARD


def test_images_match_the_result(trained, short):
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


def test_broken_by_names_the_component(trained, short):
    model, x, y = trained
    y = y.clone()
    y[0] = (y[0] + 1) % 10  # misclassified without an attack
    settings = dict(eps=0.06, version='custom', batch_size=10)
    result = autoattack(model, x, y, attacks=['apgd-ce', 'square', 'apgd-t'], **settings)
    assert result.broken_by[0] == 'clean' and not result.clean[0]
    assert [name is None for name in result.broken_by] == result.robust.tolist()
    remaining = int(result.clean.sum())
    for run in result.runs:
        assert run.attacked == remaining and run.broken == result.broken_by.count(run.name)
        remaining -= run.broken
    assert remaining == int(result.robust.sum()) and result.runs[0].broken > 0
    first = autoattack(model, x, y, attacks=['apgd-ce'], **settings)
    assert torch.equal(first.robust, result.not_broken_by()['apgd-ce'] & result.clean)


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
    """A model that differentiates while it predicts, which the package reports."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            torch.autograd.grad(self.model(z).sum(), z)
        return self.model(x)


def test_a_warning_about_one_model_is_not_repeated_for_the_next(trained):
    model, x, y = trained
    settings = dict(eps=0.1, version='custom', attacks=['apgd-ce'])
    assert any('dynamic' in text for text in autoattack(Dynamic(model), x[:2], y[:2], **settings).warnings)
    assert autoattack(model, x[:2], y[:2], **settings).warnings == ()


def test_images_outside_the_ball_do_not_count(trained, monkeypatch):
    model, x, y = trained
    monkeypatch.setattr(
        pyautoattack.autoattack.APGDAttack, 'perturb', lambda self, x, y: (1 - x).clamp(0, 1))
    result = autoattack(model, x, y, eps=0.01, version='custom', attacks=['apgd-ce'])
    assert torch.equal(result.robust, result.clean) and torch.equal(result.x_adv, x)
    assert any('left the ball' in text for text in result.warnings)


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


class Reformatted(nn.Module):
    def forward(self, x):
        return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('change', [
    lambda model: model.to(torch.bfloat16), lambda model: model.double(),
    lambda model: model.to(memory_format=torch.channels_last),
    lambda model: nn.Sequential(Reformatted(), model)], ids=['bfloat16', 'float64', 'channels_last', 'reformatted'])
@pytest.mark.parametrize('norm', NORMS)
def test_any_dtype_and_memory_format(learned, short, change, norm):
    model, x, y = learned(channels=3)
    settings = dict(eps=EPS[3][norm], norm=norm, version='custom', attacks=STANDARD, batch_size=12)
    plain = autoattack(model, x[:12], y[:12], **settings)
    result = autoattack(change(model), x[:12], y[:12], **settings)
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


class NaNForContrast(nn.Module):
    """NaN for images with many pixels at the top of the range, which only large perturbations make."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.where((x > 0.999).flatten(1).sum(1, keepdim=True) > 40, torch.nan, self.model(x))


def test_nan_under_attack_is_reported(trained, short):
    model, x, y = trained
    result = autoattack(NaNForContrast(model), x, y, eps=0.9, version='custom', attacks=['square'])
    assert any('NaN or infinite logits under square' in text for text in result.warnings)


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


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_compiled_passes_give_the_same_result(trained, short, norm):
    """In float64, where rounding does not change a result; with few graphs, although batches become smaller."""
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


SHARED = dict(eps=0.04, version='custom', attacks=['apgd-ce', 'apgd-dlr'], batch_size=4, seed=1)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 5)).eval()
    x = torch.rand(26, 1, 6, 6)
    return model, x, model(x).argmax(1)


def work(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    shared = dict(rank=rank, world_size=2)
    model, x, y = problem()
    seen = []
    result = autoattack(
        model, x, y, **SHARED, **shared, state=folder / 'state', progress=lambda *args: seen.append(args))
    errors = []
    for arguments in (
            (model, x + 0.001 * rank - 0.001 * rank * x, y, dict(SHARED)),  # other images in one process
            (model, x + 9 * rank, y, dict(SHARED)),  # images out of range in one process
            (model, x, y, dict(SHARED, seed=7, state=folder / 'state')),  # the state of another run
    ):
        try:
            autoattack(*arguments[:3], **arguments[3], **shared)
        except ValueError as error:
            errors.append(str(error))
    torch.save({
        'robust': result.robust, 'x_adv': result.x_adv, 'broken_by': result.broken_by, 'errors': errors,
        'runs': [(run.name, run.attacked, run.broken, run.forwards) for run in result.runs],
        'images': {s[0]: s[2] for s in seen}}, folder / f'{rank}.pt')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(work, (port, folder), nprocs=2, start_method='spawn')
    return folder, [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


def test_two_processes_find_the_result_of_one(of_two_processes, monkeypatch):
    folder, found = of_two_processes
    whole = autoattack(*problem(), **SHARED)
    assert 0 < whole.robust.sum() < 26
    for one in found:
        assert torch.equal(one['robust'], whole.robust) and torch.equal(one['x_adv'], whole.x_adv)
        assert one['broken_by'] == whole.broken_by
        assert one['runs'] == [(run.name, run.attacked, run.broken, run.forwards) for run in whole.runs]
    for run in whole.runs:  # each attacked its share
        shares = [one['images'][run.name] for one in found]
        assert sum(shares) == run.attacked and all(shares)
    monkeypatch.delattr(pyautoattack.autoattack.APGDAttack, 'perturb')  # one process resumes the finished run
    again = autoattack(*problem(), **SHARED, state=folder / 'state')
    assert torch.equal(again.robust, whole.robust) and torch.equal(again.x_adv, whole.x_adv)


def test_all_processes_raise_if_one_has_an_error(of_two_processes):
    for one in of_two_processes[1]:
        assert len(one['errors']) == 3
        assert 'processes differ' in one['errors'][0]
        assert 'expected [0, 1]' in one['errors'][1]
        assert 'seed 1 instead of 7' in one['errors'][2]
    assert of_two_processes[1][0]['errors'][1].startswith('rank 1: ')
