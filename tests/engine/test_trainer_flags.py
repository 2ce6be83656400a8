"""Flags that change how a run is done and not what comes out of it: what is asked for is what happens."""
import dataclasses

import pytest
import torch
from tiny_run import prepared, train

from timm_paf._distributed import Processes
from timm_paf.data import Prefetched
from timm_paf.engine import Callback, Trainer


@pytest.fixture
def quick(monkeypatch):
    """No final measurement."""
    monkeypatch.setattr(Trainer, 'evaluate', lambda self: None)


@pytest.mark.parametrize('flags, waits', [([], 0), (['--synchronize-step'], 2)], ids=['none', 'synchronize'])
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_every_update_waits_for_the_gpu(tmp_path, monkeypatch, flags, waits, device):
    called = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *_: called.append(0))
    trainer = prepared(tmp_path, '--task', 'plain', *flags)
    trainer.step.processes = Processes(torch.device(device))
    for update, batch in zip(range(2), trainer.data.epoch(0), strict=False):
        trainer.step(batch, update)
    assert len(called) == (waits if device == 'cuda' else 0)


@pytest.mark.parametrize('interval, steps', [('1', [0, 1, 2, 3, 4, 5]), ('4', [0, 4, 5])], ids=['1', '4'])
def test_looks_at_the_loss(tmp_path, interval, steps):
    """FAST has six updates an epoch; the last one is always looked at."""
    class Watch(Callback):
        def on_update(self, epoch, step, metrics, shape):
            if metrics:
                shown.append(step)

    shown, trainer = [], prepared(tmp_path, '--epochs', '1', '--log-interval', interval)
    trainer.callbacks.append(Watch())
    trainer.fit()
    assert shown == steps


@pytest.mark.parametrize('minutes, inside', [('1e-9', 5), ('0', 0), ('10', 0)])
def test_checkpoints_inside_an_epoch(tmp_path, monkeypatch, quick, minutes, inside):
    saved, original = [], Trainer.checkpoint

    def checkpoint(self):
        saved.append(self.epoch)
        original(self)

    monkeypatch.setattr(Trainer, 'checkpoint', checkpoint)
    assert train(tmp_path, '--epochs', '1', '--checkpoint-minutes', minutes) == 0
    assert saved == [0] * inside + [1]


@pytest.mark.parametrize('flags, expected', [
    ([], None), (['--prefetch'], True), (['--no-prefetch'], False)], ids=['unset', 'prefetch', 'not'])
def test_batches_are_made_in_a_thread(tmp_path, monkeypatch, quick, flags, expected):
    asked, original = [], Prefetched

    def prefetched(batches, **settings):
        asked.append(settings['threaded'])
        return original(batches, **settings)

    monkeypatch.setattr('timm_paf.engine.trainer.Prefetched', prefetched)
    assert train(tmp_path, '--epochs', '1', '--updates-per-epoch', '1', *flags) == 0
    assert asked == [expected]


@pytest.mark.parametrize('mode, budget, fits', [
    ('yes', '0', False), ('yes', '1', True), ('auto', '0', True), ('no', '0', True)])
def test_images_that_must_stay_on_the_device(tmp_path, capsys, monkeypatch, quick, mode, budget, fits):
    monkeypatch.setattr('timm_paf.data.archives.IN_MEMORY', 0)  # the synthetic ones stay in their file
    flags = ['--data-on-device', mode, '--data-on-device-budget', budget, '--epochs', '1', '--updates-per-epoch', '1']
    assert train(tmp_path, *flags) == (0 if fits else 2)
    assert ('raise the budget' in capsys.readouterr().err) is not fits


@pytest.mark.parametrize('mode, expected', [('reduce', [(2, True)]), ('broadcast', [(2, False)]), ('none', [])],
                         ids=['reduce', 'broadcast', 'none'])
def test_running_statistics_of_several_processes(tmp_path, monkeypatch, mode, expected):
    """One of two processes, without the other; the sums over both are left out."""
    asked = []
    monkeypatch.setattr(
        'timm_paf.engine.validation.distribute_bn',
        lambda model, world_size, reduce: asked.append((world_size, reduce)))
    monkeypatch.setattr(Processes, 'all_reduce_sum', lambda self, values: values)
    trainer = prepared(tmp_path, '--val-attack-steps', '1', '--dist-bn', mode)
    trainer.processes = dataclasses.replace(trainer.processes, world_size=2)
    trainer.validate()
    assert asked == expected
