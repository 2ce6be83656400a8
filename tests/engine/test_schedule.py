"""Schedules of the learning rate."""
import math

import pytest
from tiny_run import prepared, updated

from timm_paf.activations import paf_parameters
from timm_paf.engine.step import batches_from


def rates(folder, *argv, updates=12):
    """Rate and momentum before each update."""
    trainer, found = prepared(folder, '--task', 'plain', '--lr', '0.1', *argv), []
    for update, batch in enumerate(batches_from(trainer.data, 0, updates)):
        found.append((trainer.optimizer.param_groups[0]['lr'], trainer.optimizer.param_groups[0].get('momentum')))
        trainer.step(batch, update)
        if (update + 1) % trainer.updates_per_epoch == 0:
            trainer.schedule.step((update + 1) // trainer.updates_per_epoch)
    return found


def cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def test_onecycle_is_that_of_its_formula(tmp_path):
    found = rates(tmp_path, '--sched', 'onecycle', '--onecycle-pct-start', '0.25')
    for update, (lr, momentum) in enumerate(found):
        peak = 0.25 * 12 - 1
        if update <= peak:
            expected = cosine(0.1 / 25, 0.1, update / peak), cosine(0.95, 0.85, update / peak)
        else:
            share = (update - peak) / (11 - peak)
            expected = cosine(0.1, 0.1 / 25 / 1e4, share), cosine(0.85, 0.95, share)
        assert (lr, momentum) == pytest.approx(expected, rel=1e-6)


def test_onecycle_by_epochs_and_without_momentum(tmp_path):
    flags = ['--sched', 'onecycle', '--no-sched-on-updates', '--epochs', '4', '--updates-per-epoch', '3',
             '--onecycle-momentum', '--onecycle-pct-start', '0.5']
    found = rates(tmp_path, *flags)
    assert [found[i][0] for i in range(12)] == [found[i - i % 3][0] for i in range(12)]
    assert found[3][0] == pytest.approx(0.1) and {momentum for _, momentum in found} == {0.9}


@pytest.mark.parametrize('flags, expected', [
    (['--sched', 'multistep', '--decay-milestones', '1'], [0.1] * 5 + [0.01] * 7),
    (['--sched', 'multistep', '--decay-milestones', '1', '--decay-rate', '0.5', '--no-sched-on-updates'],
     [0.1] * 6 + [0.05] * 6),
    (['--sched', 'step', '--warmup-epochs', '1', '--warmup-lr', '0.04'],
     [0.04 + 0.01 * i for i in range(6)] + [0.1] * 6),
    (['--sched', 'cosine', '--min-lr', '0', '--epochs', '1', '--cooldown-epochs', '1'],
     [cosine(0.1, 0, i / 6) for i in range(6)] + [0.] * 6),
], ids=['multistep', 'by epochs', 'warm-up', 'cool-down'])
def test_timms_schedules(tmp_path, flags, expected):
    """Timm's multistep decays one step before the milestone, as the schedule of Rice et al. does at update scale."""
    assert [lr for lr, _ in rates(tmp_path, *flags)] == pytest.approx(expected)
    assert prepared(tmp_path, *flags).epochs == (1 if '--epochs' in flags else 2) + ('--cooldown-epochs' in flags)


@pytest.mark.parametrize('flags', [
    '--sched none', '--sched cosine --warmup-epochs 1', '--sched onecycle', '--sched multistep --no-sched-on-updates'])
@pytest.mark.parametrize('resumed', [0, 7], ids=['from the start', 'resumed'])
def test_rate_of_alpha_and_beta_is_a_share_at_any_time(tmp_path, flags, resumed):
    trainer = prepared(tmp_path, '--task', 'plain', '--lr', '0.1', '--paf-lr-scale', '0.05', *flags.split())
    if resumed:
        updated(trainer, resumed)
        other = prepared(tmp_path, '--task', 'plain', '--lr', '0.1', '--paf-lr-scale', '0.05', *flags.split())
        trainer.progress.update = resumed
        state = trainer.state_dict()
        other.load_state_dict({**state, 'args': other.config.to_dict()})
        trainer = other
    found = []
    for update, batch in enumerate(batches_from(trainer.data, resumed, 12 - resumed), resumed):
        found.append([group['lr'] for group in trainer.optimizer.param_groups])
        trainer.step(batch, update)
    others, own = zip(*((rates[0], rates[-1]) for rates in found), strict=True)
    assert own == pytest.approx([0.05 * rate for rate in others]) and max(others) > 0
    ids = {id(p) for p in trainer.optimizer.param_groups[-1]['params']}
    assert ids == {id(p) for p in paf_parameters(trainer.model).values()}
