"""An interrupted run resumes exactly; processes share a run; the state of another run is refused, and stays."""
import re
import shutil
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch
from torch import distributed, multiprocessing, nn

from timm_paf.attacks import CompileSettings, autoattack, check_state
from timm_paf.attacks.autoattack_state import AutoAttackSettings

SETTINGS = dict(eps=0.04, version='custom', attacks=['apgd-ce', 'apgd-dlr'], batch_size=4, seed=1)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 5)).eval()
    x = torch.rand(14, 1, 6, 6)
    return model, x, model(x).argmax(1).roll(1).where(torch.arange(14) == 3, model(x).argmax(1))


def assert_same(one, other):
    assert torch.equal(one.robust, other.robust) and torch.equal(one.x_adv, other.x_adv)
    assert one.broken_by == other.broken_by and one.warnings == other.warnings
    assert [(r.attacked, r.broken, r.forwards) for r in one.runs] == [
        (r.attacked, r.broken, r.forwards) for r in other.runs]


class Interrupted(Exception):
    pass


def interrupt_after(batches):
    seen = set()

    def progress(component, done, *_):
        seen.add((component, done))
        if len(seen - {(component, 0)}) == batches:
            raise Interrupted
    return progress


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """The state of a run that stopped after three batches, and the result of a whole run."""
    folder = tmp_path_factory.mktemp('interrupted')
    whole = autoattack(*problem(), **SETTINGS)
    assert 0 < whole.robust.sum() < whole.clean.sum() < 14 and all(run.broken for run in whole.runs)
    with pytest.raises(Interrupted):
        autoattack(*problem(), **SETTINGS, state=folder / 'state', progress=interrupt_after(3))
    return folder / 'state', whole


@pytest.fixture
def interrupted(found, tmp_path):
    """A copy of both for one test."""
    return Path(shutil.copytree(found[0], tmp_path / 'state')), found[1]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_no_finished_batch_is_repeated(interrupted, monkeypatch):
    state, whole = interrupted
    perturb, attacked = pyautoattack.autoattack.APGDAttack.perturb, []
    monkeypatch.setattr(pyautoattack.autoattack.APGDAttack, 'perturb', lambda self, x, y: (
        attacked.append(len(x)), perturb(self, x, y))[1])
    (state / '.abcdef.tmp').write_bytes(b'half a file')  # left by a kill
    assert_same(autoattack(*problem(), **SETTINGS, state=state), whole)
    assert len(attacked) == sum(-(-run.attacked // 4) for run in whole.runs) - 3
    assert not list(state.glob('.*'))
    attacked.clear()
    assert_same(autoattack(*problem(), **SETTINGS, state=state), whole)  # a finished run is only read
    assert attacked == []


def other(**changes):
    return lambda model, x, y: (model, x, y, {**SETTINGS, **changes})


def other_weights(model, x, y):
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-6
    return model, x, y, SETTINGS


def other_activation(model, x, y):
    return nn.Sequential(*model[:2], nn.GELU(), model[3]), x, y, SETTINGS


@pytest.mark.parametrize('change, message', [
    (other(batch_size=5, eps=0.05, seed=2), 'batch_size 4 instead of 5; eps 0.04 instead of 0.05; seed 1 instead of 2'),
    (other(attacks=['apgd-ce'], norm='l2'), "['apgd-ce', 'apgd-dlr'] instead of ['apgd-ce']; norm linf instead of l2"),
    (other(compile=CompileSettings(backend='eager')), 'compile None instead of'), (other_weights, 'other model'),
    (other_activation, 'other model'), (lambda model, x, y: (model, x, (y + 1) % 5, SETTINGS), 'other labels'),
    (lambda model, x, y: (model, x[:9], y[:9], SETTINGS), 'other images; other labels'),
], ids=['numbers', 'components', 'compile', 'weights', 'layers', 'labels', 'fewer'])
def test_state_of_another_run_is_an_error_and_stays(interrupted, change, message):
    state, _ = interrupted
    before = contents(state)
    model, x, y, settings = change(*problem())
    check_state(state, *problem(), **SETTINGS)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_state(state, model, x, y, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        autoattack(model, x, y, **settings, state=state)
    assert contents(state) == before


@pytest.mark.parametrize('name, content, message', [
    ('run.json', b'{"eps', 'run.json cannot be read'), ('run.json', b'[]', 'run.json cannot be read'),
    ('01-000000.npz', b'PK', 'delete this file'), ('01-000000.npz', 'object', 'delete this file'),
    ('01-000001.npz', 'moved', 'other images')], ids=['cut', 'other json', 'cut batch', 'code', 'moved batch'])
def test_a_damaged_state_is_named(interrupted, name, content, message):
    state, whole = interrupted
    if content == 'object':  # which numpy would unpickle, and so execute
        np.savez(state / name, attacked=np.array([print], dtype=object), allow_pickle=True)
    else:
        (state / name).write_bytes((state / '01-000000.npz').read_bytes() if content == 'moved' else content)
    before = contents(state)
    with pytest.raises(ValueError, match=message):
        autoattack(*problem(), **SETTINGS, state=state)
    assert contents(state) == before
    if content == b'PK':
        (state / name).unlink()
        assert_same(autoattack(*problem(), **SETTINGS, state=state), whole)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('mine')
    for name in ('missing', 'empty'):
        check_state(tmp_path / name, *problem(), **SETTINGS)
    for path in (tmp_path / 'mine', tmp_path / 'mine' / 'thesis.tex'):
        with pytest.raises(ValueError, match='not a state of AutoAttack'):
            check_state(path, *problem(), **SETTINGS)
        with pytest.raises(ValueError, match='not a state of AutoAttack'):
            autoattack(*problem(), **SETTINGS, state=path)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['empty', 'mine', 'thesis.tex']


def work(rank, folder):
    """One of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    shared = dict(rank=rank, world_size=2)
    model, x, y = problem()
    seen, errors = [], []
    result = autoattack(
        model, x, y, **SETTINGS, **shared, state=folder / 'state', progress=lambda *args: seen.append(args))
    for images, settings in (
            ((1 - 0.001 * rank) * x, SETTINGS), (x + 9 * rank, SETTINGS),
            (x, dict(SETTINGS, seed=7, state=folder / 'state'))):
        try:
            autoattack(model, images, y, **settings, **shared)
        except ValueError as error:
            errors.append(str(error))
    torch.save((result, {s[0]: s[2] for s in seen}, errors), folder / f'{rank}.pt')
    distributed.destroy_process_group()


def test_two_processes_find_the_result_of_one(found, tmp_path, monkeypatch):
    """And both raise if one has an error."""
    multiprocessing.start_processes(work, (tmp_path,), nprocs=2, start_method='spawn')
    results, images, errors = zip(
        *(torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)), strict=True)
    for result in results:
        assert_same(result, found[1])
    for run in found[1].runs:  # each attacked its share
        shares = [each[run.name] for each in images]
        assert sum(shares) == run.attacked and all(shares)
    for each in errors:  # other images in one process, images out of range in one process, the state of another run
        for error, message in zip(
                each, ['got different models', '[0, 1]', 'seed 1 instead of 7'], strict=True):
            assert message in error
    assert errors[0][1].startswith('rank 1: ')
    monkeypatch.delattr(pyautoattack.autoattack.APGDAttack, 'perturb')  # one process resumes the finished run
    assert_same(autoattack(*problem(), **SETTINGS, state=tmp_path / 'state'), found[1])


@pytest.mark.parametrize('settings, message', [
    (dict(version='plus'), "version = 'plus'"), (dict(version='standard', attacks=['square']), "version = 'standard'"),
    (dict(version='custom'), "version = 'custom'"), (dict(version='custom', attacks=['pgd']), r"attacks = \['pgd'\]"),
    (dict(version='custom', attacks=[]), r'attacks = \[\]'), (dict(version='custom', attacks='square'), 'a list of'),
    (dict(norm='l0'), "norm = 'l0'"), (dict(eps=0), 'eps = 0'), (dict(eps=8), 'Did you mean 8/255'),
    (dict(batch_size=0), 'batch_size = 0'), (dict(seed=-1), 'seed = -1'), (dict(seed=None), 'seed = None'),
    (dict(amp_dtype=torch.float16), 'float16'), (dict(compile='fast'), "'fast'"),
    (dict(rank=1), 'rank = 1, world_size = 1'), (dict(world_size=2), 'without a process group'),
], ids=str)
def test_bad_settings_are_named(trained, settings, message):
    with pytest.raises(ValueError, match=message):
        autoattack(*trained, **{'eps': 0.1, **settings})


@pytest.mark.parametrize('shape, classes, settings, message', [
    ((2, 16), 5, {}, 'square'), ((2, 1, 4, 4), 5, dict(norm='l2'), 'square'),
    ((2, 1, 4, 4), 2, dict(version='custom', attacks=['apgd-t']), 'apgd-t works with 2 classes')], ids=str)
def test_images_and_classes_that_cannot_be_attacked(shape, classes, settings, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with pytest.raises(ValueError, match=message):
        autoattack(model, torch.rand(shape), torch.zeros(2).long(), eps=0.1, **settings)


SIZES = [(4, 4), (5, 5), (5, 3), (8, 8), (9, 7), (12, 12), (12, 1), (13, 13), (14, 14), (18, 18), (19, 19), (20, 28),
         (24, 24), (24, 3), (24, 4), (28, 20), (32, 32), (48, 64), (64, 48)]


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('height, width', SIZES)
def test_square_is_refused_where_the_package_fails(height, width, norm):
    from pyautoattack.square import SquareAttack
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4))
    x = torch.rand(2, 1, height, width)
    package = SquareAttack(model, norm=norm.upper(), eps=1e-4, n_queries=2, device='cpu')
    try:
        package.perturb(x, model(x).argmax(1))
        runs = True
    except (RuntimeError, ZeroDivisionError):
        runs = False
    settings = AutoAttackSettings(eps=0.1, norm=norm, device=torch.device('cpu'), version='custom', attacks=['square'])
    if runs:
        assert settings.components(x, 4)[0] == ('square',)
    else:
        with pytest.raises(ValueError, match='square'):
            settings.components(x, 4)
