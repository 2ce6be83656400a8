"""Numbers that reach the loggers, through stand-ins for packages that need not be installed."""
import sys
import types

import pytest
from tiny_run import train

from timm_paf.engine import TrainConfig, Trainer
from timm_paf.engine.loggers import WandbLogger


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
