"""From logits to a step: the slope of the loss at the logits, and a whole step as one function for a compiler."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from timm_paf.attacks.balls import Ball
from timm_paf.attacks.losses import Loss
from timm_paf.attacks.noise import wide_dtype
from timm_paf.attacks.steps import StepRule

__all__ = ['flat_ends', 'scaled', 'traced_step']

GRADIENT_AT_LOGITS = 64.  # as large as loss scaling makes it in training, and far from the ends of float16


def scaled(slope: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient at the logits (B, K), for each image multiplied by the power of two that makes it a good size.

    No step depends on the size of an image's gradient, so that is free; without it the gradient of a confident image is
    0 in float16.
    """
    largest = slope.abs().amax(1, keepdim=True).clamp_(min=2.**-100)
    return (slope * (GRADIENT_AT_LOGITS * largest.frexp()[0] / largest)).to(dtype)


def flat_ends(gradient: Tensor) -> Tensor:
    """The gradient where a pixel without a slope stays, and an infinite slope is a large one."""
    return gradient.nan_to_num(0.)


def traced_step(value: Loss, ball: Ball, rule: StepRule) -> Callable[..., tuple[Tensor, ...]]:
    """One step of PGD with nothing but tensors, for torch.compile.

    The gradient is taken by torch.func, which puts the backward pass into the same graph as the forward pass: outside
    of it nothing is differentiated, and nothing is kept.

    Args:
        value: The loss, of (logits, …).
        ball: The norm's functions.
        rule: The step rule.

    Returns:
        A function (model, x_adv, x, memory, *what the loss compares with, eps, step size) -> logits, values of the
        loss, the next x_adv and, if the rule remembers, the next memory. eps and step size are tensors without axes,
        so that another number is no other graph.
    """
    def pgd_step(model: nn.Module, x_adv: Tensor, x: Tensor, memory: Tensor | None, *others: Tensor) -> tuple:
        *compared, eps, step_size = others
        logits, pull = torch.func.vjp(model, x_adv)
        wide = logits.to(wide_dtype(logits.dtype))

        def total(wide):  # without annotations: torch 2.6 does not trace them
            values = value(wide, *compared)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(wide)
        gradient = flat_ends(pull(scaled(slope, logits.dtype))[0])
        direction = rule.follow(memory, gradient)
        moved = ball.project(ball.step(x_adv, direction, step_size), x, eps)
        return (logits, values, moved, direction) if rule.remembers else (logits, values, moved)
    return pgd_step
