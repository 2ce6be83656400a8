"""Scaled gradients, and one step of PGD as a single function for torch.compile."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.balls import Ball
from timm_paf.attacks.losses import Loss
from timm_paf.attacks.steps import StepRule

__all__ = ['scaled', 'traced_step']

GRADIENT_AT_LOGITS = 64.  # about the size after loss scaling in training, and far from the limits of float16


def scaled(slope: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient for the logits (B, K), scaled by a power of two for each image, so that it is not 0 in float16.

    No step depends on the size of an image's gradient.
    """
    largest = slope.abs().amax(1, keepdim=True).clamp_(min=2.**-100)
    return (slope * (GRADIENT_AT_LOGITS * largest.frexp()[0] / largest)).to(dtype)


def traced_step(value: Loss, ball: Ball, rule: StepRule) -> Callable[..., tuple[Tensor, ...]]:
    """One step of PGD for torch.compile; torch.func puts the forward and the backward pass into the same graph.

    Returns:
        A function (model, x_adv, x, memory, *what the loss compares with, eps, step size) -> logits, values of the
        loss, the next x_adv and, if the rule remembers, the next memory. eps and step size are tensors without axes,
        so that other values do not need another graph.
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
