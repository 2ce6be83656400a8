"""Networks that train in a second, registered in timm, and runs of them; as a script it is the command `train`."""
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch
from timm.models import register_model
from torch import nn

import timm_paf
from timm_paf.engine import Measurement, Trainer, parse_train_config, parse_validate_config
from timm_paf.engine import train as train_command
from timm_paf.engine.step import batches_from

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
FAST = [
    '--attack-steps', '2', '--batch-size', '32', '--pgd-steps', '2', '--num-synthetic', '500', '--autoattack', 'none',
    '--device', 'cpu', '--updates-per-epoch', '6', '--epochs', '2', '--lr', '0.05', '--log-interval', '2']


class Tiny(nn.Module):
    """Two convolutions with one shared PSSiLU; with `norm` BatchNorm and dropout, which have states of their own."""

    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        self.act = timm_paf.shared('pssilu')()
        self.conv1 = nn.Conv2d(in_chans, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(0.2) if norm else nn.Identity()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.act(self.norm(self.conv1(x)))
        return self.fc(self.drop(self.act(self.conv2(x)).flatten(1)))


@register_model
def tiny_smooth(pretrained=False, num_classes=10, in_chans=1, **kwargs):
    return Tiny(num_classes, in_chans, norm=False)


@register_model
def tiny_norm(pretrained=False, num_classes=10, in_chans=1, **kwargs):
    return Tiny(num_classes, in_chans, norm=True)


def open_trainer(argv):
    """The run of a command line, as the command opens it."""
    return Trainer(parse_train_config(argv))


def open_measurement(argv):
    """The measurement of a command line, as the command opens it."""
    return Measurement(parse_validate_config(argv))


def train(folder, *argv, name='run', model='tiny_smooth'):
    """Exit status of a short run in folder/name."""
    return train_command([*FAST, '--model', model, '--output', str(folder), '--experiment', name, *argv])


def prepared(folder, *argv, model='tiny_smooth'):
    """A short run that has not started."""
    return open_trainer([*FAST, '--model', model, '--output', str(folder), *argv])


def updated(trainer, count):
    """The run after some updates, without an epoch around them."""
    trainer.task.train()
    for update, batch in enumerate(batches_from(trainer.data, 0, count)):
        trainer.step(batch, update)
    return trainer


def trained(folder, *argv, key='state_dict', model='tiny_smooth'):
    """Flat weights after a run."""
    name = f'run{len(list(folder.iterdir()))}'
    assert train(folder, *argv, name=name, model=model) == 0
    return torch.cat([value.flatten() for value in weights_of(folder / name / 'last.pth.tar', key).values()])


def launch(*argv, rank=None, port=None, world_size=2):
    """A process of the command `train` with these networks; one of several if a rank is given."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(RECIPES.parent), *sys.path]))
    if rank is not None:
        environment |= dict(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port))
    return subprocess.Popen(
        [sys.executable, '-u', __file__, *FAST, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)


def wait_for(process, text, timeout=120):
    """Read the output of a process up to a line with this text; it is ended if none comes in time."""
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if text in line:
                return
    finally:
        timer.cancel()
    raise AssertionError(f'the process ended with {process.wait()}: {process.stderr.read()}')


def ended(processes, timeout=120):
    """Outputs and errors, once the processes and what they have started have ended."""
    return [process.communicate(timeout=timeout) for process in processes]


def stop_at(monkeypatch, update, number=signal.SIGTERM):
    """Send this process a signal just after an update of the run that trains in it."""
    original = Trainer.record

    def record(self, *arguments):
        result = original(self, *arguments)
        if self.progress.update == update + 1:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Trainer, 'record', record)


TIMES = {'train_images_per_second', 'train_data_wait'}


def rows_of(folder):
    """The summary without what depends on the clock."""
    import csv
    return [{name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader((folder / 'summary.csv').read_text().splitlines())]


def weights_of(path, key='state_dict'):
    return torch.load(path, weights_only=True)[key]


def assert_same_result(one, other):
    """Two run folders have come to the same weights, averages, optimizer states and summaries, bit for bit."""
    assert rows_of(one) == rows_of(other)
    first, second = (torch.load(folder / 'last.pth.tar', weights_only=True) for folder in (one, other))
    for key in ('state_dict', 'state_dict_ema'):
        assert first.get(key, {}).keys() == second.get(key, {}).keys()
        for name, value in first.get(key, {}).items():
            assert torch.equal(value, second[key][name]), (key, name)
    for name, state in first['optimizer']['state'].items():
        for part, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second['optimizer']['state'][name][part]))
    best = [torch.load(folder / 'model_best.pth.tar', weights_only=True)['epoch'] for folder in (one, other)]
    assert best[0] == best[1]


if __name__ == '__main__':
    sys.exit(train_command())
