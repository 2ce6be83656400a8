"""Numbers that reach the loggers, through stand-ins for packages that need not be installed."""
import sys
import types

import pytest
from tiny_run import train

from timm_paf.engine import TrainConfig, Trainer
from timm_paf.engine.loggers import TensorBoardLogger, WandbLogger


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


def test_tensorboard(told, tmp_path):
    logger = TensorBoardLogger(TrainConfig(), tmp_path / 'run')
    logger.on_start([])
    logger.on_epoch({'epoch': 3, 'train_loss': 0.5, 'eval_robust': 70., 'eval_clean': None}, shape={}, best=True)
    logger.on_end(None)
    assert told == [('writer', str(tmp_path / 'run' / 'tensorboard')), ('train_loss', 0.5, 3), ('eval_robust', 70., 3),
                    'closed']


@pytest.mark.parametrize('flags, wanted', [
    ([], (False, [])), (['--log-tensorboard'], (True, [])),
    (['--log-wandb', '--wandb-project', 'paf', '--wandb-tags', 'a', 'b'], (False, [('paf', ['a', 'b'])])),
], ids=['none', 'tensorboard', 'wandb'])
def test_a_run_logs_where_its_flags_say(told, tmp_path, monkeypatch, flags, wanted):
    monkeypatch.setattr(Trainer, 'evaluate', lambda self: None)
    assert train(tmp_path, *flags) == 0
    begun = [entry for entry in told if isinstance(entry, dict)]
    writes = ('writer', str(tmp_path / 'run' / 'tensorboard')) in told
    assert (writes, [(settings['project'], settings['tags']) for settings in begun]) == wanted
    numbers = [entry for entry in told if isinstance(entry, tuple) and entry[0] not in ('writer', 'finish')]
    assert {entry[-1] for entry in numbers} == ({0, 1} if flags else set())
    if begun:
        assert begun[0]['config']['model'] == 'tiny_smooth' and told[-1] == ('finish', 0)


def wandb_logger(folder):
    return WandbLogger(TrainConfig(lr=0.1, wandb_project='paf', wandb_tags=('a',)), folder)


@pytest.mark.parametrize('error', [None, RuntimeError('lost')], ids=['finished', 'failed'])
def test_wandb_continues_a_resumed_run(told, tmp_path, error):
    """The last row is logged again, since a killed process may not have logged it."""
    row = {'epoch': 3, 'train_loss': 0.5}
    logger = wandb_logger(tmp_path / 'run')
    logger.on_start([row])
    logger.on_end(error)
    settings, logged, finish = told
    assert (settings['name'], settings['resume'], settings['project'], settings['config']['lr']) == (
        'run', 'allow', 'paf', 0.1)
    told.clear()
    for folder in (tmp_path / 'run', tmp_path / 'elsewhere' / 'run'):  # the same folder, and another of that name
        wandb_logger(folder).on_start([])
    again, other = (entry['id'] for entry in told)
    assert settings['id'] == again != other
    assert logged == ({'epoch': 3, 'train_loss': 0.5}, 3) and finish == ('finish', int(error is not None))


@pytest.mark.parametrize('flag, module', [
    ('--log-tensorboard', 'torch.utils.tensorboard'), ('--log-wandb', 'wandb')])
def test_a_logger_that_is_not_installed(tmp_path, monkeypatch, refused, flag, module):
    monkeypatch.setitem(sys.modules, module, None)
    refused(train(tmp_path, flag), f'{flag}: ')


def test_wandb_itself_takes_the_numbers(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    logger = wandb_logger(tmp_path / 'run')
    logger.on_start([])
    logger.on_epoch({'epoch': 0, 'train_loss': 0.53125, 'eval_robust': None}, shape={}, best=True)
    assert wandb.run.id == (tmp_path / 'run' / 'wandb' / 'id').read_text() and wandb.run.tags == ('a',)
    assert wandb.run.config['lr'] == 0.1
    logger.on_end(None)
    (file,) = (tmp_path / 'run' / 'wandb').glob('offline-run-*/*.wandb')
    content = file.read_bytes()  # records with their texts as they are
    assert b'train_loss' in content and b'0.53125' in content and b'eval_robust' not in content
