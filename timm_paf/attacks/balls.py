"""Norm balls around an image, intersected with [0, 1]. Each norm is three functions: start, step and project.

The projections are exact: clipping to [0, 1] after a projection onto the ball would leave a part of the radius unused.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf.attacks.random_start import Noise

__all__ = ['BALLS', 'Ball', 'check_radius']

Number = float | Tensor
SPARSITY = 0.01  # fraction of the coordinates that an L1 step changes


class Ball(NamedTuple):
    """The functions of a norm, on batches of images (B, …) in [0, 1].

    eps and step_size of step and project may be tensors without axes, so that a compiled step serves all values.
    """
    start: Callable[[Tensor, float, Noise], Tensor]  # x, eps, noise -> a uniformly random perturbation in the ball
    step: Callable[[Tensor, Tensor, Number], Tensor]  # x_adv, gradient, step size -> x_adv after the steepest ascent
    project: Callable[[Tensor, Tensor, Number], Tensor]  # x_adv, x, eps -> the nearest image in the ball and in [0, 1]
    largest: Callable[[int], float]  # number of pixels -> the largest distance of two images


def _pixels(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _like(flat: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(flat.view(x.shape))  # in the memory format of x too


def _linf_start(x: Tensor, eps: float, noise: Noise) -> Tensor:
    return _like(eps * noise(_pixels(x)), x)


def _linf_step(x_adv: Tensor, gradient: Tensor, step_size: Number) -> Tensor:
    if isinstance(step_size, Tensor):
        return (x_adv + gradient.sign() * step_size).to(x_adv.dtype)
    return x_adv.add(gradient.sign(), alpha=step_size)


def _linf_project(x_adv: Tensor, x: Tensor, eps: Number) -> Tensor:
    return torch.clamp(x_adv, x - eps, x + eps).clamp_(0, 1)


def _l2_start(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """A direction from normal random numbers, and a radius with density proportional to r^(n-1)."""
    n = _pixels(x)
    numbers = noise(n + 1)
    direction = torch.erfinv(numbers[:, :n])
    radius = eps * numbers[:, n:].abs() ** (1 / n)
    return _like(radius * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True), x)


def _l2_step(x_adv: Tensor, gradient: Tensor, step_size: Number) -> Tensor:
    wide = gradient.flatten(1).to(compute_dtype(x_adv.dtype))
    tiny = torch.finfo(wide.dtype).tiny
    wide = wide / wide.abs().amax(1, keepdim=True).clamp_(min=tiny)  # so that squares do not underflow or overflow
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_(min=tiny)
    return x_adv + _like(wide * (step_size / length), x_adv)


def _room(x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sign and length of each pixel's perturbation, and its maximal length in [0, 1] with this sign; (B, n) each."""
    x = x.flatten(1).to(compute_dtype(x.dtype))
    perturbation = x_adv.flatten(1).to(x.dtype) - x
    return perturbation.sign(), perturbation.abs(), torch.where(perturbation > 0, 1 - x, x)


def _moved(x: Tensor, sign: Tensor, length: Tensor) -> Tensor:
    return _like((x.flatten(1).to(length.dtype) + sign * length).clamp_(0, 1), x)


def _l2_project(x_adv: Tensor, x: Tensor, eps: Number) -> Tensor:
    """The nearest point has lengths min(t a, m) with one t in [0, 1]; a is the length of each pixel, m its maximum.

    This follows from the Karush-Kuhn-Tucker conditions. A pixel reaches its maximum at t = m / a, and between two such
    points the squared norm is a constant plus t² times a constant. Sorting the points finds the interval.
    """
    sign, length, room = _room(x_adv, x)
    tiny = torch.finfo(length.dtype).tiny
    limits, order = (room / length.clamp(min=tiny)).clamp_(max=2).sort(1)  # t <= 1, so larger values do not matter
    squares = length.gather(1, order).square()
    going = squares.flip(1).cumsum(1).flip(1) - squares
    at_limits = room.gather(1, order).square().cumsum(1) + limits.square() * going
    count = (at_limits <= eps**2).sum(1, keepdim=True)  # pixels that reach their maximum before t
    first = (torch.arange(length.shape[1], device=x.device) < count).to(length.dtype)
    stops = torch.zeros_like(room).scatter_(1, order, first)
    # both sums again, because cumulative sums lose digits
    left = (eps**2 - (stops * room.square()).sum(1, keepdim=True)).clamp_(min=0)
    scale = (left / ((1 - stops) * length.square()).sum(1, keepdim=True).clamp_(min=tiny)).sqrt_().clamp_(max=1)
    return _moved(x, sign, torch.minimum(torch.where(stops > 0, length, scale * length), room))


def _l1_start(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """N of n + 1 exponential numbers, divided by the sum of all, are uniform in the simplex; signs make it a ball."""
    n = _pixels(x)
    numbers = noise(n + 1)
    exponential = -numbers.abs().clamp_(min=torch.finfo(numbers.dtype).eps).log_()
    share = exponential[:, :n] / exponential.sum(1, keepdim=True)
    return _like(eps * numbers[:, :n].sign() * share, x)


def _l1_step(x_adv: Tensor, gradient: Tensor, step_size: Number) -> Tensor:
    """The step, in equal parts for the 1 % of the pixels with the largest gradients (SLIDE, arXiv 1904.13000).

    The part that would take a pixel out of [0, 1] goes to the next pixels.
    """
    wide = gradient.flatten(1).to(compute_dtype(x_adv.dtype))
    at = x_adv.flatten(1).to(wide.dtype)
    part = step_size / math.ceil(SPARSITY * wide.shape[1])
    room = torch.where(wide > 0, 1 - at, at).clamp_(min=0).clamp_(max=part) * (wide != 0)
    order = wide.abs().argsort(1, descending=True)
    room = room.gather(1, order)
    parts = torch.minimum(room, (step_size - (room.cumsum(1) - room)).clamp_(min=0))
    return x_adv + _like(wide.sign() * torch.zeros_like(wide).scatter_(1, order, parts), x_adv)


def _l1_project(x_adv: Tensor, x: Tensor, eps: Number) -> Tensor:
    """The nearest point has lengths clamp(a - t, 0, m) with one t >= 0; a is the length of each pixel, m its maximum.

    The set is that of Croce and Hein (arXiv 2103.01208). The norm is piecewise linear in t, with a corner at a - m,
    where a pixel leaves its maximum, and at a, where it reaches 0.
    """
    sign, length, room = _room(x_adv, x)
    leaves = (length - room).clamp_(min=0)
    corners, order = torch.cat([leaves, length], 1).sort(1)
    n = length.shape[1]
    moving = torch.where(order < n, 1, -1).cumsum(1)  # number of pixels that shrink after each corner
    fall = (corners.diff(dim=1) * moving[:, :-1]).cumsum(1)
    norm = torch.minimum(length, room).sum(1, keepdim=True)
    over = norm - eps
    at = torch.cat([over * 0, fall], 1)  # decrease of the norm at each corner
    piece = ((at < over).sum(1, keepdim=True) - 1).clamp_(min=0)
    t = corners.gather(1, piece) + (over - at.gather(1, piece)) / moving.gather(1, piece).clamp_(min=1)
    for _ in range(2):  # cumulative sums lose digits; in the right interval one Newton step is exact
        shrunk = torch.minimum(length - t, room).clamp_(min=0)
        active = ((shrunk > 0) & (shrunk < room)).sum(1, keepdim=True).clamp_(min=1)
        t = t + (shrunk.sum(1, keepdim=True) - eps) / active
    t = torch.where(over > 0, t, 0).clamp_(min=0)
    shrunk = torch.minimum(length - t, room).clamp_(min=0)
    total = shrunk.sum(1, keepdim=True)  # above eps by rounding, where x_adv was far away
    return _moved(x, sign, shrunk * (eps / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp_(max=1))


#: Balls by the name of their norm.
BALLS = {
    'linf': Ball(_linf_start, _linf_step, _linf_project, lambda n: 1.),
    'l2': Ball(_l2_start, _l2_step, _l2_project, math.sqrt),
    'l1': Ball(_l1_start, _l1_step, _l1_project, float),
}


def check_radius(eps: float, norm: str, x: Tensor) -> None:
    """Raise ValueError if eps is larger than the largest distance of two images."""
    largest = BALLS[norm].largest(_pixels(x))
    if eps > largest:
        raise ValueError(
            f'eps = {eps:g} in {norm}: the largest distance of two images of shape {tuple(x.shape[1:])} with pixels in '
            f'[0, 1] is {largest:g}. Did you mean {eps:g}/255?')
