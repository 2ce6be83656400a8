"""Optimizer, schedule and average of a run, of timm's and torch's parts."""
import math
import warnings
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from timm_paf.engine.config import TrainConfig
from timm_paf.tasks import paf_parameter_groups

__all__ = [
    'OneCycle', 'WeightAverage', 'fused_optimizer', 'learning_rate', 'make_average', 'make_optimizer', 'make_scheduler']


def learning_rate(config: TrainConfig) -> float:
    """The learning rate asked for, or by the linear scaling rule."""
    return config.lr_base * config.batch_size / config.lr_base_size if config.lr is None else config.lr


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Timm's optimizer of the settings.

    Raises:
        ValueError: If timm has none of that name.
    """
    options: dict[str, Any] = {}
    if config.opt_eps is not None:
        options['eps'] = config.opt_eps
    fused = fused_optimizer(config)
    if fused is not None:
        options['fused'] = fused
    if config.opt_betas:
        options['betas'] = config.opt_betas
    parameters: Any = model
    if config.paf_lr is not None or config.paf_weight_decay is not None:
        if config.layer_decay is not None:
            raise ValueError('--layer-decay and --paf-lr or --paf-weight-decay exclude each other; leave one out.')
        parameters = paf_parameter_groups(
            model, weight_decay=config.weight_decay, paf_weight_decay=config.paf_weight_decay, paf_lr=config.paf_lr,
            filter_bias_and_bn=config.filter_bias_and_bn)
    return create_optimizer_v2(
        parameters, opt=config.opt, lr=learning_rate(config), weight_decay=config.weight_decay,
        momentum=config.momentum, filter_bias_and_bn=config.filter_bias_and_bn, layer_decay=config.layer_decay,
        **options)


def fused_optimizer(config: TrainConfig) -> bool | None:
    """What the optimizer is told: True and False for fused or not, None for nothing.

    With float16 the fused optimizers undo the scaling of gradients inside of their step, where what clips the gradient
    of beta just before it would see the scaled one.

    Raises:
        ValueError: If it is asked for and cannot be had.
    """
    scaled = config.amp and config.amp_dtype == 'float16'
    try:
        kind: Any = get_optimizer_class(config.opt.lower().removeprefix('lookahead_'), bind_defaults=False)
    except ValueError:
        return None  # timm says what is wrong with the name
    known = kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # others have it on some devices alone
    if config.opt_fused and (scaled or not known):
        why = 'with --amp-dtype float16' if scaled else f'of {config.opt}'
        raise ValueError(f'--opt-fused: there is no fused form {why}; leave it out.')
    if not known:
        return None
    return not scaled if config.opt_fused is None else config.opt_fused


def make_scheduler(
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
) -> tuple[Any, int]:
    """The schedule of the settings, and how many epochs the run has with it; the schedule is None for 'none'.

    Every schedule is a function of the number of updates (or epochs) alone; none needs to be stored.

    Raises:
        ValueError: If there is none of that name, or it cannot be had here.
    """
    if config.sched == 'plateau':
        raise ValueError('--sched plateau follows the validation and is not to be had here; try multistep.')
    if config.sched == 'onecycle':
        return OneCycle(
            optimizer, total=config.epochs * (updates_per_epoch if config.sched_on_updates else 1),
            on_updates=config.sched_on_updates, pct_start=config.onecycle_pct_start,
            div_factor=config.onecycle_div_factor, final_div_factor=config.onecycle_final_div_factor,
            momentum=config.onecycle_momentum), config.epochs
    # timm's multistep moves one step before its milestones: an update is nothing, an epoch is one
    milestones = [milestone if config.sched_on_updates else milestone + 1 for milestone in config.decay_milestones]
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched=config.sched, num_epochs=config.epochs, warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr, min_lr=config.min_lr, cooldown_epochs=config.cooldown_epochs,
        decay_epochs=config.decay_epochs, decay_milestones=milestones, decay_rate=config.decay_rate,
        step_on_epochs=not config.sched_on_updates, updates_per_epoch=updates_per_epoch)
    if scheduler is None and config.sched != 'none':
        raise ValueError(f'--sched = {config.sched!r}: timm knows no such schedule.')
    return scheduler, epochs


class OneCycle:
    """torch's OneCycleLR with the face of timm's schedules: told how far the run is, instead of counting calls.

    The rate rises from lr / div_factor to lr over the first `pct_start` of the run and falls to its start divided by
    `final_div_factor`, along half cosines; momentum runs the other way (Rebuffi et al., arXiv 2103.01946, whose code
    moves it once an epoch).

    Args:
        optimizer: Its groups' learning rates are the highest ones.
        total: Updates, or epochs, of the whole run.
        on_updates: Whether `total` counts updates.
        pct_start: Share of the run in which the rate rises, 0 to 1.
        div_factor: See above.
        final_div_factor: See above.
        momentum: Lowest and highest momentum; none leaves it alone.
    """

    def __init__(
            self,
            optimizer: torch.optim.Optimizer,
            *,
            total: int,
            on_updates: bool,
            pct_start: float,
            div_factor: float,
            final_div_factor: float,
            momentum: tuple[float, ...],
    ) -> None:
        cycled: dict[str, Any] = {'cycle_momentum': False}
        if momentum:
            cycled = dict(base_momentum=momentum[0], max_momentum=momentum[1])
        self.total = total
        self.on_updates = on_updates
        self.torch = OneCycleLR(
            optimizer, max_lr=[group['lr'] * group.get('lr_scale', 1.) for group in optimizer.param_groups],
            total_steps=total, pct_start=pct_start, div_factor=div_factor, final_div_factor=final_div_factor, **cycled)

    def step_update(self, num_updates: int) -> None:
        """Set rate and momentum for the update after the first `num_updates`."""
        if self.on_updates:
            self._move(num_updates)

    def step(self, epoch: int) -> None:
        """Set rate and momentum for an epoch, counted from 0."""
        if not self.on_updates:
            self._move(epoch)

    def _move(self, place: int) -> None:
        self.torch.last_epoch = min(place, self.total - 1) - 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of a schedule that is entered in the middle
            self.torch.step()


class WeightAverage:
    """timm's ModelEmaV3 with the decay that Gowal et al. (arXiv 2010.03593) use.

    Over the first `copied` updates the average is a copy of the weights. After n more its decay is `decay`, or with
    `warmup` min(decay, (1 + n) / (10 + n)). Buffers, BatchNorm's statistics among them, are always copied.

    Args:
        task: The task whose model is averaged.
        decay: Share of the old average that stays, 0 to below 1.
        warmup: See above.
        copied: See above.
    """

    def __init__(self, task: TrainingTask, *, decay: float, warmup: bool, copied: int) -> None:
        self.task = task
        self.decay = decay
        self.warmup = warmup
        self.copied = copied
        self.average = task.setup_ema(decay=decay, exclude_buffers=True)

    def decay_at(self, update: int) -> float:
        """The decay after an update, counted from 0."""
        n = update - self.copied
        if n < 0:
            return 0.
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    def update(self, update: int) -> None:
        """Average the weights after an update, counted from 0."""
        self.average.decay = self.decay_at(update)
        self.task.update_ema()


def make_average(config: TrainConfig, task: TrainingTask, total_updates: int) -> WeightAverage | None:
    """The average of the settings, if they ask for one."""
    if not config.model_ema:
        return None
    return WeightAverage(
        task, decay=config.model_ema_decay, warmup=config.model_ema_warmup,
        copied=math.ceil(config.model_ema_copy * total_updates))
