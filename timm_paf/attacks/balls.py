"""Norm balls. A norm is three functions; the gradient loop in `pgd` knows nothing else of it."""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['BALLS', 'Ball', 'ball']


class Ball(NamedTuple):
    """The three functions of a norm.

    Attributes:
        start: (x, eps, generator) -> a random perturbation of x's shape inside the ball.
        step: (gradient, step_size) -> the perturbation of norm step_size along which the loss rises fastest.
        project: (perturbation, eps) -> the nearest perturbation inside the ball.
    """
    start: Callable[[Tensor, float, torch.Generator], Tensor]
    step: Callable[[Tensor, float], Tensor]
    project: Callable[[Tensor, float], Tensor]


def _linf_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(x).uniform_(-eps, eps, generator=generator)


def _linf_step(gradient: Tensor, step_size: float) -> Tensor:
    return step_size * gradient.sign()


def _linf_project(perturbation: Tensor, eps: float) -> Tensor:
    return perturbation.clamp(-eps, eps)


BALLS = {'linf': Ball(_linf_start, _linf_step, _linf_project)}


def ball(norm: str) -> Ball:
    """The ball of a norm by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if norm not in BALLS:
        raise ValueError(f'norm = {norm!r}: expected {" or ".join(BALLS)}.')
    return BALLS[norm]
