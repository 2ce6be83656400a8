"""Projections, steps and starts against brute force, closed forms and statistics."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest

from timm_paf.attacks import BALLS
from timm_paf.attacks.random_start import generated

ORDERS = {'linf': math.inf, 'l2': 2, 'l1': 1}
NORMS = pytest.mark.parametrize('norm', BALLS)


def distance(a, b, norm):
    return torch.linalg.vector_norm((a.double() - b.double()).flatten(1), ORDERS[norm], dim=1)


def nearest(z, x, eps, norm):
    """The projection by its definition: a root of the multiplier, for one image at a time, in float64 with scipy."""
    low, high = -x, 1 - x
    v = z - x
    if norm == 'linf':
        return np.clip(np.clip(v, -eps, eps), low, high) + x

    def point(t):
        if norm == 'l2':
            return np.clip(v / (1 + t), low, high)
        return np.clip(np.sign(v) * np.maximum(np.abs(v) - t, 0), low, high)

    def excess(t):
        return np.linalg.norm(point(t), ORDERS[norm]) - eps
    if excess(0) <= 0:
        return point(0) + x
    top = 1.
    while excess(top) > 0:
        top *= 2
    return point(brentq(excess, 0, top, xtol=1e-15, rtol=1e-14, maxiter=500)) + x


def images(seed, batch, shape, dtype, on_edge):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=generator) < on_edge, x.round(), x)
    return x.to(dtype), generator


@st.composite
def cases(draw):
    shape = draw(st.sampled_from([(1,), (2,), (7,), (1, 3, 3), (3, 2, 4), (3, 8, 8)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    on_edge = draw(st.sampled_from([0, .5]))
    x, generator = images(draw(st.integers(0, 999)), draw(st.integers(1, 4)), shape, dtype, on_edge)
    size = draw(st.sampled_from([0., 1e-3, 0.1, 1., 30.]))
    z = x + size * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
    if draw(st.booleans()):  # equal lengths: corners at one and the same place
        z = x + size * (z - x).sign()
    eps = draw(st.sampled_from([0., 1e-3, 0.03, 0.5, 2., 12.]))
    return x, z, eps


@NORMS
@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_projection(norm, case):
    """Feasible, idempotent, and the nearest of all feasible points."""
    x, z, eps = case
    tolerance = 64 * torch.finfo(x.dtype).eps
    found = BALLS[norm].project(z, x, eps)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert found.min() >= 0 and found.max() <= 1
    assert (distance(found, x, norm) <= eps * (1 + tolerance) + tolerance).all()
    torch.testing.assert_close(BALLS[norm].project(found, x, eps), found, rtol=0, atol=tolerance)
    flat = zip(z.double().flatten(1).numpy(), x.double().flatten(1).numpy(), strict=True)
    expected = torch.tensor(np.stack([nearest(a, b, eps, norm) for a, b in flat])).view(x.shape)
    scale = max(1., float((z - x).abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=scale * tolerance)


@NORMS
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_and_large_images_keep_to_the_radius(norm, dtype):
    """Running sums over many pixels lose digits; the result must not."""
    x = torch.rand(2, 3, 224, 224).to(dtype)
    z = x + torch.randn_like(x)
    eps = {'linf': 4 / 255, 'l2': 3., 'l1': 75.}[norm]
    found = BALLS[norm].project(z, x, eps)
    assert found.dtype == dtype and found.min() >= 0 and found.max() <= 1
    exact = BALLS[norm].project(z.double(), x.double(), eps)
    assert (found.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps
    if dtype == torch.float32:
        torch.testing.assert_close(distance(found, x, norm), distance(exact, x, norm), rtol=3e-6, atol=1e-7)


@NORMS
def test_memory_format_is_kept(norm):
    x = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    noise = generated(x, torch.Generator().manual_seed(0))
    ball = BALLS[norm]
    for image in (ball.project(x + 0.1, x, 0.2), ball.start(x, 0.2, noise), ball.step(x, x - 0.5, 0.1)):
        assert image.is_contiguous(memory_format=torch.channels_last)
    expected = ball.project(x.contiguous() + 0.1, x.contiguous(), 0.2)
    torch.testing.assert_close(ball.project(x + 0.1, x, 0.2), expected)
    assert torch.equal(ball.project(x[1:] + 0.1, x[1:], 0.2), ball.project(x + 0.1, x, 0.2)[1:])
    assert ball.project(x[:0], x[:0], 0.2).shape == (0, 3, 4, 4)


@pytest.mark.parametrize('norm, move, size', [
    ('linf', [1., -1, 0, 1], 1.), ('l1', [0, -1., 0, 0], 1.), *[('l2', [.6, -.8, 0, 0], s) for s in (1., 1e-30, 1e30)]])
def test_steps_are_the_steepest(norm, move, size):
    """Of all steps of that length none gains more; also where the squares of the gradient leave the format."""
    gradient = size * torch.tensor([[3., -4., 0., 1e-8 if norm == 'l2' else 1e-3]])
    x = torch.full((1, 4), 0.5)
    moved = BALLS[norm].step(x, gradient, 0.1) - x
    torch.testing.assert_close(moved, 0.1 * torch.tensor([move]))
    assert torch.equal(BALLS[norm].step(x, gradient * 0, 0.1), x)


def test_l1_step_moves_the_hundredth_that_can_move():
    """Pixels without room are passed over, those with a little take it, and the rest goes to the next ones."""
    x = torch.full((1, 300), 0.5)
    x[0, :3] = torch.tensor([1., 0., 0.97])
    gradient = torch.arange(300., 0, -1)[None].clone()
    gradient[0, 1] *= -1  # the two largest point out of [0, 1]
    moved = BALLS['l1'].step(x, gradient, 0.3) - x
    expected = torch.zeros(1, 300)
    expected[0, 2:6] = torch.tensor([0.03, 0.1, 0.1, 0.07])
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('n', [1, 3, 40])
def test_starts_fill_the_ball_evenly(norm, n):
    """The share of the volume within radius r is (r / eps)^n; each coordinate is spread as its marginal says."""
    x = torch.full((20_000, n), 0.5)
    start = BALLS[norm].start(x, 0.2, generated(x, torch.Generator().manual_seed(0))).double()
    radius = torch.linalg.vector_norm(start, ORDERS[norm], dim=1) / 0.2
    assert radius.max() <= 1 + 1e-6
    assert kstest(radius ** n, 'uniform').pvalue > 1e-3
    squares = {'l2': 1 / (n + 2), 'l1': 2 / ((n + 1) * (n + 2))}[norm]  # the exact mean of a coordinate's square
    assert (start / 0.2).square().mean().item() == pytest.approx(squares, rel=0.03)
    assert (start / 0.2).mean().abs() < 0.02
    if n > 1:
        assert (start[:, 0] * start[:, 1]).mean().abs() / 0.04 < 3 / math.sqrt(20_000) / n
