"""Losses, attacks and activations of a run by its flags: each changes what is trained, or gives what it must equal."""
import pytest
import torch
from tiny_run import open_trainer, prepared, updated

import timm_paf
from timm_paf.engine.model import build_model
from timm_paf.engine.step import batches_from

CHANGES = [  # flags, after those that both runs have
    '--seed 1', '--eps 0.05', '--attack-step-size 0.1 | --attack-steps 1', '--attack-step-size 0.01', '--epochs 1',
    '--updates-per-epoch 4', '--batch-size 16', '--opt adamw', '--lr 0.01', '--momentum 0.5', '--weight-decay 0.1',
    '--sched none', '--min-lr 0.04', '--amp', '--amp | --amp-dtype float16', '--color-jitter 0.5', '--cutout 4',
    '--reprob 1', '--cutmix 1', '--hflip | --synthetic-augment same', '--num-synthetic 100', '--task trades',
    '--task mart', '--task trades | --trades-beta 1', '--task mart | --mart-beta 1',
    '--eps 0.5 --attack-step-size 0.2 | --norm l2', '--eps-warmup-epochs 1', '--attack-step-rule cosine',
    '--attack-loss margin', '--attack-mode train', '--no-attack-random-start', '--awp-gamma 0.01',
    '--awp-gamma 0.01 | --awp-start-epoch 0.5', '--beta-grad-clip none | --beta-penalty 0',
    '--beta-penalty 1 | --beta-grad-clip none',
    '--beta-penalty 0 --beta-grad-clip none --paf-lr-scale 100 | --beta-bound 0.001', '--paf-lr-scale 0.5',
    '--paf-weight-decay 0.5', '--attack-mode train | --norm-weight-decay 0.5', '--alpha-grad-clip 1e-6',
    '--alpha-grad-clip 1e-6 | --alpha-grad-clip none',
    '--smoothing 0.3', '--synthetic-smoothing 0.3', '--crop-padding 2', '--hflip', '--lr none | --lr-base 0.01',
    '--lr none | --lr-base-size 16', '--sched step | --decay-epochs 0.3',
    '--sched onecycle --onecycle-pct-start 0.5 | --onecycle-div-factor 2',
    '--sched onecycle --onecycle-pct-start 0.2 | --onecycle-final-div-factor 2', '--synthetic-fraction 0']


def after(folder, *argv, updates=4):
    """Flat weights after a few updates."""
    trainer = updated(prepared(folder, *argv, model='tiny_norm' if '--attack-mode' in argv else 'tiny_smooth'), updates)
    return torch.cat([p.detach().flatten() for p in trainer.task.get_trainable_module().parameters()])


@pytest.fixture(scope='module')
def unchanged(tmp_path_factory):
    """Weights without the flag; each run is made once, twice the first time, so that it is the flag and not chance."""
    known, folder = {}, tmp_path_factory.mktemp('unchanged')

    def weights(base):
        if base not in known:
            known[base] = after(folder, *base)
            assert torch.equal(known[base], after(folder, *base))
        return known[base]
    return weights


def test_weights_that_cannot_be_downloaded_name_the_model(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no network\nmore')
    monkeypatch.setattr('timm.create_model', fail)
    with pytest.raises(OSError, match=r'resnet18: its pretrained weights cannot be read \(no network\)\. Check'):
        build_model('resnet18', num_classes=2, in_chans=3, pretrained=True)


@pytest.mark.parametrize('flags', CHANGES)
def test_the_flag_changes_the_weights(tmp_path, unchanged, flags):
    base, _, more = flags.rpartition(' | ')
    base = (*base.split(), *(['--attack-mode', 'eval'] if 'attack-mode' in flags else []))
    assert not torch.equal(unchanged(base), after(tmp_path, *base, *more.split()))


@pytest.mark.parametrize('flags, same', [
    (['--awp-gamma', '0'], []),
    (['--awp-gamma', '0.01', '--awp-start-epoch', '1'], []),  # four of the six updates of an epoch are made
    (['--task', 'trades', '--trades-beta', '0', '--beta-penalty', '0'], ['--task', 'plain', '--beta-penalty', '0']),
    (['--eps-warmup-epochs', '0'], []),
    (['--attack-loss', 'ce', '--attack-step-rule', 'fixed', '--norm', 'linf'], []),
], ids=['awp 0', 'awp later', 'trades 0', 'no warm-up', 'defaults'])
def test_what_it_equals(tmp_path, flags, same):
    torch.testing.assert_close(after(tmp_path, *flags), after(tmp_path, *same), rtol=1e-5, atol=1e-6)


def test_trades_climbs_the_divergence_unless_told_otherwise(tmp_path):
    assert prepared(tmp_path, '--task', 'trades').task.attack.loss == 'kl'
    assert prepared(tmp_path, '--task', 'trades', '--attack-loss', 'ce').task.attack.loss == 'ce'
    assert prepared(tmp_path, '--task', 'mart').task.attack.loss == 'ce'


@pytest.mark.parametrize('sharing, modules', [('network', 1), ('stage', 4), ('layer', 7), ('channel', 7)])
def test_sharing_of_activations(tmp_path, sharing, modules):
    trainer = open_trainer([
        '--model', 'wrn10_2_pssilu', '--act-sharing', sharing, '--output', str(tmp_path), '--num-synthetic', '100'])
    parameters = timm_paf.paf_parameters(trainer.task.get_trainable_module())
    assert len(parameters) == 2 * modules  # two in each of three blocks, and the last one
    assert all((p.numel() > 1) == (sharing == 'channel') for p in parameters.values())


def test_the_bound_holds(tmp_path):
    trainer = prepared(
        tmp_path, '--beta-penalty', '0', '--beta-grad-clip', 'none', '--paf-lr-scale', '2000', '--beta-bound', '0.3')
    for update, batch in enumerate(batches_from(trainer.data, 0, 4)):
        trainer.step(batch, update)
        beta = timm_paf.paf_parameters(trainer.task.get_trainable_module())['act.beta']
        assert abs(float(beta.detach())) <= 0.3 + 1e-7
    assert abs(float(beta.detach())) > 0.01
