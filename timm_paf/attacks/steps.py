"""Rules for the length and the direction of each step of PGD."""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['STEP_RULES', 'StepRule', 'scaled']

GRADIENT_AT_LOGITS = 64.  # about the size after loss scaling in training, and far from the limits of float16


class StepRule(NamedTuple):
    """The two functions of a rule."""
    size: Callable[[int, int], float]  # (number of the step from 0, number of steps) -> factor of the step size
    follow: Callable[[Tensor | None, Tensor], Tensor]  # (last direction or None, gradient) -> direction of ascent
    remembers: bool = False  # whether `follow` uses the last direction; zeros are equivalent to None then


def _momentum(before: Tensor | None, gradient: Tensor) -> Tensor:
    """Sum of gradients divided by their mean absolute value: MI-FGSM (Dong et al., arXiv 1710.06081), decay 1."""
    size = gradient.abs().mean(tuple(range(1, gradient.dim())), keepdim=True)
    gradient = gradient / size.clamp_(min=torch.finfo(gradient.dtype).tiny)
    return gradient if before is None else before + gradient


#: Rules for the size and direction of an attack's steps, by name.
STEP_RULES = {
    'fixed': StepRule(lambda i, n: 1., lambda before, gradient: gradient),
    'cosine': StepRule(lambda i, n: (1 + math.cos(math.pi * i / n)) / 2, lambda before, gradient: gradient),
    'momentum': StepRule(lambda i, n: 1., _momentum, remembers=True),
}


def scaled(slope: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient for the logits (B, K), scaled by a power of two for each image, so that it is not 0 in float16."""
    largest = slope.abs().amax(1, keepdim=True).clamp_(min=2.**-100)
    return (slope * (GRADIENT_AT_LOGITS * largest.frexp()[0] / largest)).to(dtype)
