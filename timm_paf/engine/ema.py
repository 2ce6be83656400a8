"""Exponential moving average of the weights."""
from typing import cast

from timm.task import TrainingTask
from timm.utils import ModelEmaV3

__all__ = ['EMA']


class EMA:
    """timm's ModelEmaV3 with the decay of Gowal et al. (arXiv 2010.03593).

    Over the first `copied` updates the average is a copy of the weights. After n more its decay, the share of the old
    average that stays, is `decay`, or with `warmup` min(decay, (1 + n) / (10 + n)). Buffers are always copied.
    """

    def __init__(self, task: TrainingTask, *, decay: float, warmup: bool, copied: int) -> None:
        self.task, self.decay, self.warmup, self.copied = task, decay, warmup, copied
        self.average = cast(ModelEmaV3, task.setup_ema(decay=decay, exclude_buffers=True))

    def decay_at(self, update: int) -> float:
        """Decay after an update, counted from 0."""
        n = update - self.copied
        if n < 0:
            return 0.
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    def update(self, update: int) -> None:
        """Average the weights after an update, counted from 0."""
        self.average.decay = self.decay_at(update)
        self.task.update_ema()
