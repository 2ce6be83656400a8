"""What trackers are told, through stand-ins for packages that need not be installed."""
import sys
import types
from pathlib import Path

import adv_train
import pytest
from tiny_run import FAST

from timm_paf.engine.cli import run

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'


@pytest.fixture
def trackers(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import timm_paf.engine.loggers as _trackers
    return _trackers.Trackers


@pytest.fixture
def told(monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            told.append(('writer', folder))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            told.append('closed')

    class Run:
        def log(self, numbers, step):
            told.append((numbers, step))

        def finish(self, exit_code):
            told.append(('finish', exit_code))

    def init(**settings):
        told.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    return told


def test_without_trackers_nothing_happens(trackers, told, tmp_path):
    with trackers(tmp_path, {}) as quiet:
        quiet.log(0, {'loss': 1.})
    assert not told and not list(tmp_path.iterdir())


def test_tensorboard(trackers, told, tmp_path):
    with trackers(tmp_path / 'run', {}, log_tensorboard=True) as logger:
        logger.log(3, {'train_loss': 0.5, 'eval_robust': 70.})
    assert told == [('writer', str(tmp_path / 'run' / 'tensorboard')), ('train_loss', 0.5, 3), ('eval_robust', 70., 3),
                    'closed']


@pytest.mark.parametrize('flags, wanted', [
    ([], (False, [])), (['--log-tensorboard'], (True, [])),
    (['--log-wandb', '--wandb-project', 'paf', '--wandb-tags', 'a', 'b'], (False, [('paf', ['a', 'b'])])),
], ids=['none', 'tensorboard', 'wandb'])
def test_a_run_tells_those_that_its_flags_name(told, tmp_path, monkeypatch, flags, wanted):
    monkeypatch.setattr(adv_train, 'report_robustness', lambda *_: None)
    argv = [*FAST, '--model', 'tiny_smooth', '--output', str(tmp_path), '--experiment', 'run', *flags]
    assert run(lambda: adv_train.prepare(argv), adv_train.train) == 0
    begun = [entry for entry in told if isinstance(entry, dict)]
    writes = ('writer', str(tmp_path / 'run' / 'tensorboard')) in told
    assert (writes, [(settings['project'], settings['tags']) for settings in begun]) == wanted
    numbers = [entry for entry in told if isinstance(entry, tuple) and entry[0] not in ('writer', 'finish')]
    assert {entry[-1] for entry in numbers} == ({0, 1} if flags else set())
    if begun:
        assert begun[0]['config']['model'] == 'tiny_smooth' and told[-1] == ('finish', 0)


@pytest.mark.parametrize('fails', [False, True])
def test_wandb_takes_a_resumed_run_for_the_same(trackers, told, tmp_path, fails):
    def job():
        with trackers(
                tmp_path / 'run', {'lr': 0.1}, log_wandb=True, wandb_project='paf', wandb_tags=('a',)) as logger:
            logger.log(3, {'train_loss': 0.5})
            if fails:
                raise RuntimeError('lost')

    if fails:
        with pytest.raises(RuntimeError, match='lost'):
            job()
    else:
        job()
    settings, logged, finish = told
    assert (settings['name'], settings['resume'], settings['project'], settings['config']) == (
        'run', 'allow', 'paf', {'lr': 0.1})
    first = settings['id']
    told.clear()
    for folder in (tmp_path / 'run', tmp_path / 'elsewhere' / 'run'):  # the same one again, and another of that name
        with trackers(folder, {}, log_wandb=True):
            pass
    again, other = (entry['id'] for entry in told if isinstance(entry, dict))
    assert first == again != other
    assert logged == ({'epoch': 3, 'train_loss': 0.5}, 3) and finish == ('finish', int(fails))


@pytest.mark.parametrize('flag, module', [
    ('log_tensorboard', 'torch.utils.tensorboard'), ('log_wandb', 'wandb')])
def test_a_tracker_that_is_not_installed(trackers, tmp_path, monkeypatch, flag, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f'--{flag.replace("_", "-")}: .* is not installed; pip install'):
        trackers(tmp_path, {}, **{flag: True})
    assert not list(tmp_path.iterdir())


def test_wandb_itself_takes_the_numbers(trackers, tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    with trackers(tmp_path / 'run', {'lr': 0.1}, log_wandb=True, wandb_project='paf', wandb_tags=('a',)) as logger:
        logger.log(0, {'train_loss': 0.53125, 'eval_robust': None})
        assert wandb.run.id == (tmp_path / 'run' / 'wandb' / 'id').read_text() and wandb.run.tags == ('a',)
        assert dict(wandb.run.config) == {'lr': 0.1}
    (file,) = (tmp_path / 'run' / 'wandb').glob('offline-run-*/*.wandb')
    content = file.read_bytes()  # records with their texts as they are
    assert b'train_loss' in content and b'0.53125' in content and b'eval_robust' not in content
