"""Trainer: own data, networks and steps, callbacks; flags that change how a run is done."""
import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_run import assert_same_result, prepared, rows_of, train, updated, weights_of
from torch import nn

from timm_paf._distributed import Processes
from timm_paf.data import Prefetched, digits_splits
from timm_paf.engine import Callback, TrainConfig, Trainer, ValidateConfig, measure

QUIET = Console(quiet=True)
SETTINGS = dict(
    model='tiny_norm', attack_steps=2, batch_size=32, pgd_steps=2, autoattack='none', device='cpu',
    updates_per_epoch=6, epochs=2, lr=0.05, eps='0.1')


def config(folder, **changes):
    return TrainConfig(**{**SETTINGS, 'output': str(folder), 'experiment': 'run', **changes})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A finished run."""
    trainer = Trainer(config(tmp_path_factory.mktemp('whole')), console=QUIET)
    trainer.fit()
    trainer.evaluate()
    return trainer.folder


@pytest.mark.gpu
def test_defaults_train_and_measure_on_a_gpu(tmp_path):
    """They learn the digits in 40 updates, without a warning, such as that of a model that cannot be recorded."""
    trainer = Trainer(TrainConfig(
        dataset='digits', model='wrn10_2_pssilu', epochs=2, updates_per_epoch=20, attack_steps=3, eps='0.1',
        autoattack='apgd-ce', n_examples=16, output=str(tmp_path), experiment='run'), console=QUIET)
    assert trainer.processes.device.type == 'cuda'
    trainer.fit()
    report = trainer.evaluate()
    assert report.measurements['clean'].accuracy.correct > 180  # of 360 in ten classes
    assert report.measurements['autoattack'].accuracy.total == 16
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_own_loop_over_batches_needs_no_folder(tmp_path):
    trainer = Trainer(config(tmp_path), console=QUIET)
    metrics = [trainer.train_step(batch) for batch in trainer.batches()]
    assert len(metrics) == 6 and all(torch.isfinite(step['loss']) for step in metrics)
    report = trainer.evaluate()  # of the weights as they are
    assert report.checkpoint is None and report.measurements['clean'].accuracy.total == 360
    assert not list(tmp_path.iterdir())


def test_batch_without_train_step_is_an_error(tmp_path):
    trainer = Trainer(config(tmp_path), console=QUIET)
    with pytest.raises(RuntimeError, match='needs a call of train_step'):
        list(trainer.batches())


def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(36, 10))


def test_own_network_and_arrays_train_resume_and_are_measured(tmp_path):
    """An interrupted run of them has the result of one that was not interrupted."""
    train, val, test = ((split.images, split.labels) for split in digits_splits())

    def run(name, **changes):
        torch.manual_seed(0)
        return Trainer(
            config(tmp_path, model='mine', experiment=name, **changes), model=small(), train=train, val=val, test=test,
            console=QUIET)

    trainer = run('whole')
    trainer.fit()
    report = trainer.evaluate()
    assert (report.model, report.dataset) == ('mine', 'own data') and report.measurements['pgd'].accuracy.total == 360
    first = run('broken')
    with first.running():
        for batch in first.batches():
            first.train_step(batch)
        first.end_epoch(first.validate())
        first.checkpoint()
    again = run('broken', resume='auto')
    assert again.epoch == 1
    again.fit()
    again.evaluate()
    assert_same_result(tmp_path / 'whole', tmp_path / 'broken')
    fresh = trainer.fresh_model().state_dict()
    torch.manual_seed(0)
    for name, value in small().state_dict().items():
        assert torch.equal(fresh[name], value)
    checkpoint = str(tmp_path / 'whole' / 'model_best.pth.tar')
    again = measure(
        ValidateConfig(checkpoint=checkpoint, autoattack='none', pgd_steps=2, trust=False, device='cpu'), model=small(),
        data=test, console=QUIET)
    assert again.measurements['pgd'].accuracy == report.measurements['pgd'].accuracy


def test_own_data_set_without_splits(tmp_path):
    class Digits(torch.utils.data.Dataset):
        data = digits_splits().train

        def __len__(self):
            return 200

        def __getitem__(self, index):
            return self.data.images[index], int(self.data.labels[index])

    trainer = Trainer(config(tmp_path, val_size=50), train=Digits(), console=QUIET)
    assert (len(trainer.data.real), len(trainer.val), trainer.config.dataset) == (150, 50, 'own data')
    trainer.fit()
    with pytest.raises(ValueError, match='test='):
        trainer.evaluate()


def test_subclass_changes_the_step(tmp_path):
    class Clean(Trainer):
        def train_step(self, batch):
            """Without an attack, by hand."""
            self.optimizer.zero_grad()
            logits = self.model(batch.x)
            loss = nn.functional.cross_entropy(logits, batch.y)
            loss.backward()
            self.optimizer.step()
            return self.record(batch, loss.detach() * len(batch), (logits.argmax(1) == batch.y).sum())

    settings = dict(sched='none', model='tiny_smooth', beta_grad_clip=None)
    trainer = Clean(config(tmp_path, **settings), console=QUIET)
    trainer.fit()
    assert trainer.epoch == 2 and len(rows_of(trainer.folder)) == 2
    plain = Trainer(config(tmp_path, experiment='plain', task='plain', beta_penalty=0., **settings), console=QUIET)
    plain.fit()
    for name, value in weights_of(trainer.folder / 'last.pth.tar').items():
        torch.testing.assert_close(value, weights_of(plain.folder / 'last.pth.tar')[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('update', [1, 6, 8])
def test_state_dict_continues_exactly(whole, tmp_path, update):
    """In memory, in the middle of an epoch and at its end."""
    first = Trainer(config(tmp_path, experiment='first'), console=QUIET)
    state = {}
    while not state:
        for batch in first.batches():
            first.train_step(batch)
            if first.progress.update == update != 6:
                state = copy.deepcopy(first.state_dict())
                break
        else:
            first.end_epoch(first.validate())
            if first.progress.update == update:
                state = copy.deepcopy(first.state_dict())
    second = Trainer(config(tmp_path), console=QUIET)
    assert second.load_state_dict({**state, 'args': {**state['args'], 'experiment': 'run'}}) == []
    second.fit()
    second.evaluate()
    assert rows_of(second.folder)[-1] == rows_of(whole)[-1]
    for name, value in weights_of(whole / 'last.pth.tar').items():
        assert torch.equal(value, weights_of(second.folder / 'last.pth.tar')[name])




def test_callbacks_watch_a_run(tmp_path):
    class Watch(Callback):
        def __init__(self):
            self.seen, self.updates = [], []

        def on_start(self, rows):
            self.seen.append(('start', len(rows)))

        def on_update(self, epoch, step, metrics, shape):
            self.updates.append((epoch, step, sorted(metrics), sorted(shape)))

        def on_epoch(self, row, *, shape, best):
            assert (tmp_path / 'run' / 'last.pth.tar').exists()
            self.seen.append(('epoch', row['epoch'], best))

        def on_message(self, text):
            self.seen.append(text.split()[0])

        def on_end(self, error):
            self.seen.append(('end', type(error)))

    watch = Watch()
    Trainer(config(tmp_path, val_interval=2, log_interval=5), callbacks=[watch], console=QUIET).fit()
    assert [entry for entry in watch.seen if isinstance(entry, tuple)] == [
        ('start', 0), ('epoch', 0, False), ('epoch', 1, True), ('end', type(None))]
    assert 'tiny_norm' in watch.seen
    assert [(epoch, step) for epoch, step, *_ in watch.updates] == [(e, s) for e in range(2) for s in range(6)]
    assert [(step, metrics) for epoch, step, metrics, _ in watch.updates if epoch == 0 and metrics] == [
        (step, ['data_wait', 'images_per_second', 'loss', 'robust']) for step in (0, 5)]
    assert watch.updates[0][3] == ['alpha', 'beta'] and watch.updates[1][3] == []




def test_metrics_of_several_processes(tmp_path, monkeypatch):
    """One of two processes, of which the other has losses of 0 and as many images, all classified correctly."""
    seen = []

    class Watch(Callback):
        def on_update(self, epoch, step, metrics, shape):
            seen.append(metrics)

    for name, others in (('alone', 0), ('both', 1)):
        trainer = Trainer(config(tmp_path, experiment=name, log_interval=1), callbacks=[Watch()], console=QUIET)
        monkeypatch.setattr(
            Processes, 'all_reduce_sum',
            lambda self, sums, others=others: sums + others * torch.stack([0 * sums[0], sums[2], sums[2]]))
        trainer.train_step(next(stream := trainer.batches()))
        next(stream)
        stream.close()
    alone, both = seen
    assert both['loss'] == pytest.approx(alone['loss'] / 2)
    assert both['robust'] == pytest.approx((alone['robust'] + 100) / 2)


@pytest.fixture
def quick(monkeypatch):
    """No final measurement."""
    monkeypatch.setattr(Trainer, 'evaluate', lambda self: None)


@pytest.mark.parametrize('flags, device, waits', [
    ([], 'cuda', 0), (['--synchronize-step'], 'cuda', 2), (['--synchronize-step'], 'cpu', 0)], ids=str)
def test_every_update_waits_for_the_gpu(tmp_path, monkeypatch, flags, device, waits):
    called = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *_: called.append(0))
    trainer = prepared(tmp_path, '--task', 'plain', *flags)
    trainer.step.processes = Processes(torch.device(device))
    updated(trainer, 2)
    assert len(called) == waits



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


def test_every_random_number_has_the_seed(tmp_path):
    """As a data set or a transform of one's own may use any of the generators."""
    found = []
    for seed in ('7', '7', '8'):
        prepared(tmp_path, '--seed', seed)
        found.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))
