"""Learning rate schedules of timm, and torch's one-cycle schedule in the same form."""
import warnings
from typing import Any, TypeAlias

import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import OneCycleLR

from timm_paf.engine.train_config import TrainConfig

__all__ = ['OneCycle', 'Schedule', 'make_schedule']


def make_schedule(
        config: TrainConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple['Schedule | None', int]:
    """The schedule of the settings (None for 'none'; ValueError if unknown), and the number of epochs with it."""
    if config.sched == 'plateau':
        raise ValueError('--sched plateau follows the validation and is not supported; try multistep.')
    if config.sched == 'onecycle':
        return OneCycle(
            optimizer, total=config.epochs * (updates_per_epoch if config.sched_on_updates else 1),
            on_updates=config.sched_on_updates, momentum=config.onecycle_momentum, pct_start=config.onecycle_pct_start,
            div_factor=config.onecycle_div_factor, final_div_factor=config.onecycle_final_div_factor), config.epochs
    # timm's multistep moves one step before its milestones: negligible for an update, but not for an epoch
    milestones = [milestone if config.sched_on_updates else milestone + 1 for milestone in config.decay_milestones]
    same = ('sched', 'warmup_epochs', 'warmup_lr', 'min_lr', 'cooldown_epochs', 'decay_epochs', 'decay_rate')
    schedule, epochs = create_scheduler_v2(
        optimizer, num_epochs=config.epochs, decay_milestones=milestones, step_on_epochs=not config.sched_on_updates,
        updates_per_epoch=updates_per_epoch, **{name: getattr(config, name) for name in same})
    if schedule is None:
        if config.sched != 'none':
            raise ValueError(f'--sched = {config.sched!r}: timm knows no such schedule.')
        for group in optimizer.param_groups:  # timm's schedules do this
            group['lr'] *= group.get('lr_scale', 1.)
    return schedule, epochs


class OneCycle:
    """torch's OneCycleLR in the form of timm's schedules: it is passed the position in the run and counts no calls.

    The rate rises from lr / div_factor to lr over the first `pct_start` of the run and falls to its start divided by
    `final_div_factor`, along half cosines; momentum moves the other way (Rebuffi et al., arXiv 2103.01946).

    The highest learning rates are those of `optimizer`. The run has `total` updates, or epochs unless `on_updates`.
    `momentum` is the lowest and highest one; empty leaves it unchanged. `options` are further ones of OneCycleLR.
    """

    def __init__(
            self, optimizer: torch.optim.Optimizer, *, total: int, on_updates: bool, momentum: tuple[float, ...],
            **options: Any,
    ) -> None:
        self.total, self.on_updates = total, on_updates
        if momentum:
            options |= dict(base_momentum=momentum[0], max_momentum=momentum[1])
        self.torch = OneCycleLR(
            optimizer, max_lr=[group['lr'] * group.get('lr_scale', 1.) for group in optimizer.param_groups],
            total_steps=total, cycle_momentum=bool(momentum), **options)

    def step_update(self, num_updates: int) -> None:
        """Set rate and momentum for the update after the first `num_updates`."""
        if self.on_updates:
            self._move(num_updates)

    def step(self, epoch: int) -> None:
        """Set rate and momentum for an epoch, counted from 0."""
        if not self.on_updates:
            self._move(epoch)

    def _move(self, position: int) -> None:
        self.torch.last_epoch = min(position, self.total - 1) - 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns about a schedule that starts in the middle
            self.torch.step()


Schedule: TypeAlias = Scheduler | OneCycle
"""Both are functions of the number of updates (`step_update`) or epochs (`step`), without a state to save."""
