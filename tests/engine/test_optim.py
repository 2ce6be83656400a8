"""The optimizer of the settings."""
import pytest
from tiny_run import prepared

from timm_paf.engine.optim import fused_optimizer


def test_optimizer_options(tmp_path):
    flags = ['--opt', 'adamw', '--opt-eps', '1e-3', '--opt-betas', '0.8', '0.9', '--weight-decay', '0.1']
    (group,) = prepared(tmp_path, *flags).optimizer.param_groups
    assert (group['eps'], group['betas'], group['weight_decay']) == (1e-3, (0.8, 0.9), 0.1)


def test_layer_decay(tmp_path):
    trainer = prepared(tmp_path, '--layer-decay', '0.5', model='wrn10_2_relu')
    assert len({group['lr_scale'] for group in trainer.optimizer.param_groups}) > 2


@pytest.mark.parametrize('flags', [
    '--paf-lr-scale 0.1', '--paf-weight-decay 0.1', '--norm-weight-decay 0.1'])
def test_groups_of_ones_own_exclude_layer_decay(tmp_path, flags):
    with pytest.raises(ValueError, match=flags.split()[0]):
        prepared(tmp_path, '--layer-decay', '0.5', *flags.split())


@pytest.mark.parametrize('flags, decays', [
    ('', {0.1: 'all'}), ('--norm-weight-decay 0.2', {0.1: 'rest', 0.2: 'norm'}),
    ('--filter-bias-and-bn', {0.1: 'matrices', 0.: 'rest'}),
    ('--norm-weight-decay 0 --paf-weight-decay 0.3 --filter-bias-and-bn', {0.1: 'matrices', 0.: 'rest', 0.3: 'paf'}),
], ids=str)
def test_weight_decay_of_each_parameter(tmp_path, flags, decays):
    trainer = prepared(tmp_path, '--weight-decay', '0.1', *flags.split(), model='tiny_norm')
    kinds = {
        'all': lambda name, p: True, 'norm': lambda name, p: name.startswith('norm.'),
        'paf': lambda name, p: name.startswith('act.'), 'matrices': lambda name, p: p.dim() > 1}
    found = {id(p): group['weight_decay'] for group in trainer.optimizer.param_groups for p in group['params']}
    for name, p in trainer.model.named_parameters():
        (expected,) = [decay for decay, kind in decays.items() if kind != 'rest' and kinds[kind](name, p)] or [
            decay for decay, kind in decays.items() if kind == 'rest']
        assert found[id(p)] == expected, name


@pytest.mark.parametrize('flags, expected', [
    ([], True), (['--no-opt-fused'], False), (['--opt', 'adamw'], True), (['--opt', 'lamb'], None),
    (['--amp', '--amp-dtype', 'float16'], False), (['--amp'], True), (['--opt', 'lookahead_adam'], True)], ids=str)
def test_fused_where_it_can_be(tmp_path, flags, expected):
    trainer = prepared(tmp_path, *flags)
    assert fused_optimizer(trainer.config) is expected
    assert trainer.optimizer.param_groups[0].get('fused') in (expected, expected or None)
