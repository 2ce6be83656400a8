"""Rules for the length and the direction of each step."""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['STEP_RULES', 'StepRule']


class StepRule(NamedTuple):
    """The two functions of a rule.

    Attributes:
        size: (number of the step from 0, number of steps) -> factor of the step size.
        follow: (last direction or None, gradient) -> direction of ascent (B, …).
        remembers: Whether `follow` uses the last direction; zeros are equivalent to None then.
    """
    size: Callable[[int, int], float]
    follow: Callable[[Tensor | None, Tensor], Tensor]
    remembers: bool = False


def _momentum(before: Tensor | None, gradient: Tensor) -> Tensor:
    """Sum of gradients divided by their mean absolute value: MI-FGSM (Dong et al., arXiv 1710.06081), decay 1."""
    size = gradient.abs().mean(tuple(range(1, gradient.dim())), keepdim=True)
    gradient = gradient / size.clamp_(min=torch.finfo(gradient.dtype).tiny)
    return gradient if before is None else before + gradient


STEP_RULES = {
    'fixed': StepRule(lambda i, n: 1., lambda before, gradient: gradient),
    'cosine': StepRule(lambda i, n: (1 + math.cos(math.pi * i / n)) / 2, lambda before, gradient: gradient),
    'momentum': StepRule(lambda i, n: 1., _momentum, remembers=True),
}
