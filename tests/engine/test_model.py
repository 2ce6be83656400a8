"""Losses, attacks and activations of a run by its flags: each changes what is trained, or gives what it must equal."""
import pytest
import torch
from tiny_run import open_trainer, prepared, updated

import timm_paf
from timm_paf.engine.step import batches_from

CHANGES = {
    'seed': ([], ['--seed', '1'], {}),
    'eps': ([], ['--eps', '0.05'], {}),
    'attack steps': (['--attack-step-size', '0.1'], ['--attack-steps', '1'], {}),
    'attack step size': ([], ['--attack-step-size', '0.01'], {}),
    'epochs': ([], ['--epochs', '1'], {}),
    'updates of an epoch': ([], ['--updates-per-epoch', '4'], {}),
    'batch size': ([], ['--batch-size', '16'], {}),
    'optimizer': ([], ['--opt', 'adamw'], {}),
    'rate': ([], ['--lr', '0.01'], {}),
    'momentum': ([], ['--momentum', '0.5'], {}),
    'weight decay': ([], ['--weight-decay', '0.1'], {}),
    'schedule': ([], ['--sched', 'none'], {}),
    'lowest rate': ([], ['--min-lr', '0.04'], {}),
    'precision': ([], ['--amp'], {}),
    'half precision': (['--amp'], ['--amp-dtype', 'float16'], {}),
    'brightness': ([], ['--color-jitter', '0.5'], {}),
    'blank square': ([], ['--cutout', '4'], {}),
    'blank rectangle': ([], ['--reprob', '1'], {}),
    'cutmix': ([], ['--cutmix', '1'], {}),
    'augmented synthetic images': (['--hflip'], ['--synthetic-augment', 'same'], {}),
    'images made': ([], ['--num-synthetic', '100'], {}),
    'trades': ([], ['--task', 'trades'], {}),
    'mart': ([], ['--task', 'mart'], {}),
    'trades_beta': (['--task', 'trades'], ['--trades-beta', '1'], {}),
    'mart_beta': (['--task', 'mart'], ['--mart-beta', '1'], {}),
    'norm': (['--eps', '0.5', '--attack-step-size', '0.2'], ['--norm', 'l2'], {}),
    'eps_warmup': ([], ['--eps-warmup-epochs', '1'], {}),
    'step rule': ([], ['--attack-step-rule', 'cosine'], {}),
    'attack loss': ([], ['--attack-loss', 'margin'], {}),
    'attack mode': ([], ['--attack-mode', 'train'], {'model': 'tiny_norm'}),
    'random start': ([], ['--no-attack-random-start'], {}),
    'awp': ([], ['--awp-gamma', '0.01'], {}),
    'awp start': (['--awp-gamma', '0.01'], ['--awp-start-epoch', '0.5'], {}),
    'penalty': (['--beta-grad-clip', 'none'], ['--beta-penalty', '0'], {}),
    'beta clip': (['--beta-penalty', '1'], ['--beta-grad-clip', 'none'], {}),
    'beta bound': (
        ['--beta-penalty', '0', '--beta-grad-clip', 'none', '--paf-lr', '5'], ['--beta-bound', '0.001'], {}),
    'rate of alpha and beta': ([], ['--paf-lr', '0.5'], {}),
    'decay of alpha and beta': ([], ['--paf-weight-decay', '0.5'], {}),
    'smoothing': ([], ['--smoothing', '0.3'], {}),
    'synthetic smoothing': ([], ['--synthetic-smoothing', '0.3'], {}),
    'shifts': ([], ['--crop-padding', '2'], {}),
    'mirroring': ([], ['--hflip'], {}),
    'base rate': (['--lr', 'none'], ['--lr-base', '0.01'], {}),
    'base size': (['--lr', 'none'], ['--lr-base-size', '16'], {}),
    'decay epochs': (['--sched', 'step'], ['--decay-epochs', '0.3'], {}),
    'onecycle start': (['--sched', 'onecycle', '--onecycle-pct-start', '0.5'], ['--onecycle-div-factor', '2'], {}),
    'onecycle end': (['--sched', 'onecycle', '--onecycle-pct-start', '0.2'], ['--onecycle-final-div-factor', '2'], {}),
    'weights of real images alone': ([], ['--synthetic-fraction', '0'], {}),
}


def after(folder, *argv, updates=4, **settings):
    """Flat weights after a few updates."""
    trainer = updated(prepared(folder, *argv, **settings), updates)
    return torch.cat([p.detach().flatten() for p in trainer.task.get_trainable_module().parameters()])


@pytest.fixture(scope='module')
def unchanged(tmp_path_factory):
    """Weights without the flag; each run is made once, twice the first time, so that it is the flag and not chance."""
    known, folder = {}, tmp_path_factory.mktemp('unchanged')

    def weights(base, settings):
        key = *base, *settings.values()
        if key not in known:
            known[key] = after(folder, *base, **settings)
            assert torch.equal(known[key], after(folder, *base, **settings))
        return known[key]
    return weights


@pytest.mark.parametrize('base, flags, settings', CHANGES.values(), ids=CHANGES.keys())
def test_the_flag_changes_the_weights(tmp_path, unchanged, base, flags, settings):
    assert not torch.equal(unchanged(base, settings), after(tmp_path, *base, *flags, **settings))


@pytest.mark.parametrize('flags, same', [
    (['--awp-gamma', '0'], []),
    (['--awp-gamma', '0.01', '--awp-start-epoch', '1'], []),  # four of the six updates of an epoch are made
    (['--task', 'trades', '--trades-beta', '0', '--beta-penalty', '0'], ['--task', 'plain', '--beta-penalty', '0']),
    (['--eps-warmup-epochs', '0'], []),
    (['--attack-loss', 'ce', '--attack-mode', 'eval', '--attack-step-rule', 'fixed', '--norm', 'linf'], []),
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
        tmp_path, '--beta-penalty', '0', '--beta-grad-clip', 'none', '--paf-lr', '100', '--beta-bound', '0.3')
    for update, batch in enumerate(batches_from(trainer.data, 0, 4)):
        trainer.step(batch, update)
        beta = timm_paf.paf_parameters(trainer.task.get_trainable_module())['act.beta']
        assert abs(float(beta.detach())) <= 0.3 + 1e-7
    assert abs(float(beta.detach())) > 0.01
