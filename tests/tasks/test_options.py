"""Checks of the settings, and settings that depend on the number of the update."""
from contextlib import nullcontext

import pytest
import torch

from timm_paf.attacks import PGD
from timm_paf.tasks import TaskOptions, create_task


@pytest.mark.parametrize('setting, message', [
    (dict(smoothing=1.), 'smoothing = 1.0: expected a number from 0'),
    (dict(trades_beta=-1.), 'trades_beta = -1.0: expected a finite number >= 0'),
    (dict(mart_beta=float('inf')), 'mart_beta = inf'),
    (dict(beta_penalty=float('nan')), 'beta_penalty = nan'),
    (dict(beta_grad_clip=0.), 'beta_grad_clip = 0.0: expected a number > 0, or None'),
    (dict(alpha_grad_clip=-1.), 'alpha_grad_clip = -1.0: expected a number > 0, or None'),
    (dict(beta_bound=1.), 'beta_bound = 1.0: expected .* 0.99'),
    (dict(awp_gamma=-0.1), 'awp_gamma = -0.1'),
    (dict(awp_start_update=-1), 'awp_start_update = -1'), (dict(eps_warmup_updates=1.5), 'eps_warmup_updates = 1.5'),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else '')
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        TaskOptions(**setting)


def test_radius_and_step_grow_linearly_and_are_a_function_of_the_update(network, batch):
    attack = PGD(eps=0.2, step_size=0.05, steps=2)
    task = create_task('pgd-at', network(), attack, options=TaskOptions(eps_warmup_updates=4))
    seen = []
    for update in (0, 1, 2, 3, 4, 100, 1):  # the last as after going back to a checkpoint
        task.begin_update(update)
        x_adv = task(*batch)['x_adv']
        assert (x_adv - batch[0]).abs().max() <= attack.eps + 1e-6
        seen.append((attack.eps, attack.step_size))
    fractions = (0.25, 0.5, 0.75, 1., 1., 1., 0.5)
    assert seen == [(pytest.approx(0.2 * f), pytest.approx(0.05 * f)) for f in fractions]
    assert seen[3] == (0.2, 0.05)


@pytest.mark.parametrize('options, message', [
    (dict(eps_warmup_updates=4), 'eps_warmup_updates'), (dict(awp_gamma=.01, awp_start_update=3), 'awp_start_update'),
    (dict(awp_start_update=3), None), (dict(awp_gamma=.01), None)], ids=str)
def test_missing_begin_update_is_an_error(options, message, network, batch):
    task = create_task('pgd-at', network(), PGD(eps=0.1, steps=1), options=TaskOptions(**options))
    with nullcontext() if message is None else pytest.raises(RuntimeError, match=message):
        task(*batch)


def test_perturbation_starts_at_its_update(network, batch):
    options = dict(beta_penalty=0.)
    base = create_task('plain', network(), options=TaskOptions(**options))
    task = create_task('plain', network(), options=TaskOptions(**options, awp_gamma=0.1, awp_start_update=2))
    expected = base(*batch)['loss'].item()
    same = []
    for update in range(4):
        task.begin_update(update)
        same.append(task(*batch)['loss'].item() == expected)
    assert same == [True, True, False, False]
    assert torch.equal(task.trainable_module.state_dict()['conv1.weight'], base.trainable_module.conv1.weight)
