"""A killed run resumes exactly; the state of another run is an error and stays unchanged."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from timm_paf.attacks import CompileSettings, autoattack, check_state

SETTINGS = dict(eps=0.04, version='custom', attacks=['apgd-ce', 'apgd-dlr'], batch_size=4, seed=1)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 5)).eval()
    x = torch.rand(26, 1, 6, 6)
    return model, x, model(x).argmax(1).roll(1).where(torch.arange(26) == 3, model(x).argmax(1))


def assert_same(one, other):
    assert torch.equal(one.robust, other.robust) and torch.equal(one.x_adv, other.x_adv)
    assert one.broken_by == other.broken_by and one.warnings == other.warnings
    assert [(r.attacked, r.broken, r.forwards) for r in one.runs] == [
        (r.attacked, r.broken, r.forwards) for r in other.runs]


class Interrupted(Exception):
    pass


def interrupt_after(batches):
    seen = set()

    def progress(component, done, total, robust, left):
        seen.add((component, done))
        if len(seen - {(component, 0)}) == batches:
            raise Interrupted

    return progress


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """The state of a run that stopped after three batches, and the result of a whole run."""
    folder = tmp_path_factory.mktemp('interrupted')
    whole = autoattack(*problem(), **SETTINGS)
    assert 0 < whole.robust.sum() < whole.clean.sum() < 26 and all(run.broken for run in whole.runs)
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
    def change(model, x, y):
        return model, x, y, {**SETTINGS, **changes}
    return change


def other_weights(model, x, y):
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-6
    return model, x, y, SETTINGS


def other_activation(model, x, y):
    model[2] = nn.GELU()
    return model, x, y, SETTINGS


@pytest.mark.parametrize('change, message', [
    (other(eps=0.05), 'eps 0.04 instead of 0.05'), (other(norm='l2'), 'norm linf instead of l2'),
    (other(seed=2), 'seed 1 instead of 2'), (other(batch_size=5), 'batch_size 4 instead of 5'),
    (other(attacks=['apgd-ce']), "components ['apgd-ce', 'apgd-dlr'] instead of ['apgd-ce']"),
    (other(compile=CompileSettings(backend='eager')), 'compile None instead of'), (other_weights, 'other model'),
    (other_activation, 'other model'), (lambda model, x, y: (model, 1 - x, y, SETTINGS), 'other images'),
    (lambda model, x, y: (model, x, (y + 1) % 5, SETTINGS), 'other labels'),
    (lambda model, x, y: (model, x[:20], y[:20], SETTINGS), 'other images; other labels'),
], ids=['eps', 'norm', 'seed', 'batch size', 'components', 'compile', 'weights', 'layers', 'images', 'labels', 'fewer'])
def test_state_of_another_run_is_an_error_and_stays(interrupted, change, message):
    state, _ = interrupted
    before = contents(state)
    model, x, y, settings = change(*problem())
    check_state(state, *problem(), **SETTINGS)
    messages = []
    for call in (lambda: check_state(state, model, x, y, **settings),
                 lambda: autoattack(model, x, y, **settings, state=state)):
        with pytest.raises(ValueError, match='another run') as error:
            call()
        messages.append(str(error.value))
    assert messages[0] == messages[1] and message in messages[0] and '\n' not in messages[0]
    assert contents(state) == before


def test_a_compiled_run_is_resumed(tmp_path):
    settings = dict(SETTINGS, attacks=['apgd-ce'], compile=CompileSettings(backend='eager'))
    first = autoattack(*problem(), **settings, state=tmp_path / 'state')
    check_state(tmp_path / 'state', *problem(), **settings)
    assert_same(autoattack(*problem(), **settings, state=tmp_path / 'state'), first)


@pytest.mark.parametrize('name, content, message', [
    ('run.json', b'{"eps', 'run.json cannot be read'), ('run.json', b'[]', 'run.json cannot be read'),
    ('01-000000.npz', b'PK', 'delete this file'), ('01-000000.npz', b'', 'delete this file'),
], ids=['cut', 'other json', 'cut batch', 'empty batch'])
def test_a_damaged_state_is_named(interrupted, name, content, message):
    state, whole = interrupted
    (state / name).write_bytes(content)
    before = contents(state)
    with pytest.raises(ValueError, match=message):
        autoattack(*problem(), **SETTINGS, state=state)
    assert contents(state) == before
    if name.endswith('npz'):
        (state / name).unlink()
        assert_same(autoattack(*problem(), **SETTINGS, state=state), whole)


def test_a_moved_batch_is_detected(interrupted):
    state, _ = interrupted
    (state / '01-000001.npz').write_bytes((state / '01-000000.npz').read_bytes())
    with pytest.raises(ValueError, match='other images'):
        autoattack(*problem(), **SETTINGS, state=state)


def test_a_state_executes_no_code(interrupted):
    state, _ = interrupted
    np.savez(state / '01-000000.npz', attacked=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='cannot be read'):
        autoattack(*problem(), **SETTINGS, state=state)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    for name in ('missing', 'empty'):
        check_state(tmp_path / name, *problem(), **SETTINGS)
    for name in ('mine', 'file'):
        for call in (lambda path: check_state(path, *problem(), **SETTINGS),
                     lambda path: autoattack(*problem(), **SETTINGS, state=path)):
            with pytest.raises(ValueError, match='not a state of AutoAttack'):
                call(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['empty', 'file', 'mine', 'thesis.tex']


def test_run_json_identifies_the_run(interrupted):
    run = json.loads((interrupted[0] / 'run.json').read_text())
    assert (run['eps'], run['norm'], run['components']) == (0.04, 'linf', ['apgd-ce', 'apgd-dlr'])
    assert {len(run[name]) for name in ('images', 'labels', 'model')} == {64}


# One process imports; each of its children runs until it is killed or finished.
KILLER = '''
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import pyautoattack, torch
torch.set_num_threads(1)
from test_autoattack_state import SETTINGS, problem
from timm_paf.attacks import autoattack
folder, rng, kills = sys.argv[1], random.Random(5), 0
started = time.monotonic()
while True:
    child = os.fork()
    if not child:
        result = autoattack(*problem(), **SETTINGS, state=folder + '/state')
        torch.save((result.robust, result.x_adv, result.broken_by), folder + '/result.pt')
        os._exit(0)
    deadline = time.monotonic() + rng.uniform(0.05, 0.6) * (1 + kills / 2)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    if done:
        assert status == 0, status
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    assert time.monotonic() - started < 300
print(kills)
'''


def test_killed_at_random_moments(tmp_path, found):
    script = tmp_path / 'killer.py'
    script.write_text(KILLER)
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])}, timeout=400)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 2  # else it was never killed
    robust, x_adv, broken_by = torch.load(tmp_path / 'result.pt', weights_only=True)
    whole = found[1]
    assert torch.equal(robust, whole.robust) and torch.equal(x_adv, whole.x_adv) and broken_by == whole.broken_by
    assert not list((tmp_path / 'state').glob('.*.tmp'))
