"""How long a step is, and which way it goes, given the gradients so far."""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['STEP_RULES', 'StepRule', 'step_rule']


class StepRule(NamedTuple):
    """The two functions of a rule.

    Attributes:
        size: (step from 0, steps in all) -> share of the step size.
        follow: (what it returned at the step before, or None; gradient) -> the direction to go up, (B, …).
        remembers: Whether what it returned before matters; zeros stand for None then.
    """
    size: Callable[[int, int], float]
    follow: Callable[[Tensor | None, Tensor], Tensor]
    remembers: bool = False


def _accumulated(before: Tensor | None, gradient: Tensor) -> Tensor:
    """Gradients over their mean absolute value, summed: MI-FGSM of Dong et al. (arXiv 1710.06081), decay 1."""
    size = gradient.abs().mean(tuple(range(1, gradient.dim())), keepdim=True)
    gradient = gradient / size.clamp_(min=torch.finfo(gradient.dtype).tiny)
    return gradient if before is None else before + gradient


STEP_RULES = {
    'fixed': StepRule(lambda i, n: 1., lambda before, gradient: gradient),
    'cosine': StepRule(lambda i, n: (1 + math.cos(math.pi * i / n)) / 2, lambda before, gradient: gradient),
    'momentum': StepRule(lambda i, n: 1., _accumulated, remembers=True),
}


def step_rule(name: str) -> StepRule:
    """A rule by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in STEP_RULES:
        raise ValueError(f'step_rule = {name!r}: expected {", ".join(STEP_RULES)}.')
    return STEP_RULES[name]
