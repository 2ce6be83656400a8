"""Rules for the length and the direction of each step, and one step of PGD as a single function for torch.compile."""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.balls import Ball
from timm_paf.attacks.losses import Loss

__all__ = ['STEP_RULES', 'StepRule', 'scaled', 'traced_step']

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


STEP_RULES = {
    'fixed': StepRule(lambda i, n: 1., lambda before, gradient: gradient),
    'cosine': StepRule(lambda i, n: (1 + math.cos(math.pi * i / n)) / 2, lambda before, gradient: gradient),
    'momentum': StepRule(lambda i, n: 1., _momentum, remembers=True),
}



def scaled(slope: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient for the logits (B, K), scaled by a power of two for each image, so that it is not 0 in float16."""
    largest = slope.abs().amax(1, keepdim=True).clamp_(min=2.**-100)
    return (slope * (GRADIENT_AT_LOGITS * largest.frexp()[0] / largest)).to(dtype)


def traced_step(value: Loss, ball: Ball, rule: StepRule) -> Callable[..., tuple[Tensor, ...]]:
    """One step of PGD for torch.compile; torch.func puts the forward and the backward pass into the same graph.

    eps and step size are tensors without axes, so that other values do not need another graph.
    """
    def pgd_step(model: nn.Module, x_adv: Tensor, x: Tensor, memory: Tensor | None, *others: Tensor) -> tuple:
        *compared, eps, step_size = others
        logits, pull = torch.func.vjp(model, x_adv)[:2]
        wide = logits.to(compute_dtype(logits.dtype))

        def total(wide):  # type: ignore[no-untyped-def]  # torch 2.6 does not trace annotations
            values = value(wide, *compared)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(wide)
        gradient = pull(scaled(slope, logits.dtype))[0].nan_to_num(0.)
        direction = rule.follow(memory, gradient)
        moved = ball.project(ball.step(x_adv, direction, step_size), x, eps)
        return (logits, values, moved, direction) if rule.remembers else (logits, values, moved)
    return pgd_step
