"""BatchNorm and activation on a GPU by Triton: f((x - mean) scale + bias), with or without a shortcut.

Images are a matrix: with channels last (places, channels), else (images x channels, places). A program computes a tile
of it, and reads what a channel has once. The backward pass computes the argument of f again by the same operations.
"""
# mypy: disable-error-code="no-untyped-def"
# (Triton's functions have no Python types.)
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, empty_like, float32

from timm_paf.kernels.cpu import dense
from timm_paf.kernels.gpu import (
    _BLOCK,
    _CODES,
    _at_least,
    _inner,
    _launch,
    _slopes,
    _store_sums,
    _sum_kernel,
    _value,
)

__all__ = ['backward', 'forward']

_NAMES = {**_CODES, 'relu': 8, 'silu': 9}  # ACT in the kernels


@triton.jit
def _parameters(alpha_ptr, beta_ptr, ACT: tl.constexpr):
    """Alpha and beta; SiLU is PSiLU with alpha 1."""
    if ACT >= 8:
        return 1., 0.
    return tl.load(alpha_ptr), tl.load(beta_ptr)


@triton.jit
def _activated(z, a, b, ACT: tl.constexpr, FAST: tl.constexpr):
    if ACT == 8:
        return _at_least(z, 0.)
    if ACT == 9:
        return _value(z, 1., 0., 4, FAST)
    return _value(z, a, b, ACT, FAST)


@triton.jit
def _derivatives(z, a, b, ACT: tl.constexpr, FAST: tl.constexpr):
    if ACT == 8:
        return tl.where(z <= 0, 0., 1.), z, z
    if ACT == 9:
        return _slopes(z, 1., 0., 4, FAST)
    return _slopes(z, a, b, ACT, FAST)


@triton.jit
def _tile(
        rows, cols, channels, LAST: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
        COLS: tl.constexpr):
    """Places in memory, which of them exist, and the channel of each row or, with LAST, of each column."""
    program = tl.program_id(0)
    across = (cols + COLS - 1) // COLS
    row = (program // across) * ROWS + tl.arange(0, ROWS)
    col = (program % across) * COLS + tl.arange(0, COLS)
    start = row.to(tl.int64) * cols if WIDE else row * cols
    exists = (row < rows)[:, None]
    if not EVEN:
        exists = exists & (col < cols)[None, :]
    if not LAST:
        channel = row % channels
    elif EVEN:
        channel = col
    else:
        channel = tl.minimum(col, cols - 1)
    return start[:, None] + col[None, :], exists, channel


@triton.jit
def _along(values, LAST: tl.constexpr):
    return values[None, :] if LAST else values[:, None]


@triton.jit
def _norm(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, channel, READY: tl.constexpr, LAST: tl.constexpr):
    """Mean, scale and bias of each element, and 1/sqrt(var + eps) of each channel; with READY, var is that already."""
    invstd = tl.load(var_ptr + channel).to(tl.float32)
    if not READY:
        invstd = tl.rsqrt(invstd + eps)
    scale = invstd * tl.load(weight_ptr + channel).to(tl.float32)
    mean, bias = tl.load(mean_ptr + channel).to(tl.float32), tl.load(bias_ptr + channel).to(tl.float32)
    return _along(mean, LAST), _along(scale, LAST), _along(bias, LAST), invstd


@triton.jit
def _argument(
        x_ptr, shortcut_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, mean2_ptr, var2_ptr, weight2_ptr, bias2_ptr, eps,
        eps2, at, exists, channel, SHORTCUT: tl.constexpr, READY: tl.constexpr, LAST: tl.constexpr):
    """X, the argument of f, and scale and 1/sqrt(var + eps) of both norms."""
    mean, scale, bias, invstd = _norm(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, channel, READY, LAST)
    x = tl.load(x_ptr + at, mask=exists, other=0.)
    z = (x.to(tl.float32) - mean) * scale + bias
    scale2, invstd2 = scale, invstd
    if SHORTCUT > 0:
        y = tl.load(shortcut_ptr + at, mask=exists, other=0.).to(tl.float32)
        if SHORTCUT == 2:
            mean2, scale2, bias2, invstd2 = _norm(
                mean2_ptr, var2_ptr, weight2_ptr, bias2_ptr, eps2, channel, READY, LAST)
            y = (y - mean2) * scale2 + bias2
        z += y
    return x, z, scale, invstd, scale2, invstd2


@triton.jit
def _store_once(invstd_ptr, invstd, cols, channels, LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Store what a channel has, by the first program that has the channel."""
    program = tl.program_id(0)
    across = (cols + COLS - 1) // COLS
    if LAST:
        channel = (program % across) * COLS + tl.arange(0, COLS)
        tl.store(invstd_ptr + channel, invstd, mask=(channel < cols) & (program < across))
    else:
        row = (program // across) * ROWS + tl.arange(0, ROWS)
        tl.store(invstd_ptr + row, invstd, mask=(row < channels) & (program % across == 0))


@triton.jit(
    do_not_specialize=['rows', 'channels', 'eps', 'eps2'], do_not_specialize_on_alignment=['alpha_ptr', 'beta_ptr'])
def _value_kernel(
        x_ptr, shortcut_ptr, y_ptr, alpha_ptr, beta_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, mean2_ptr, var2_ptr,
        weight2_ptr, bias2_ptr, invstd_ptr, invstd2_ptr, eps, eps2, rows, cols, channels, ACT: tl.constexpr,
        SHORTCUT: tl.constexpr, BATCH: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
        ROWS: tl.constexpr, COLS: tl.constexpr):
    at, exists, channel = _tile(rows, cols, channels, LAST, EVEN, WIDE, ROWS, COLS)
    x, z, _, invstd, _, invstd2 = _argument(
        x_ptr, shortcut_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, mean2_ptr, var2_ptr, weight2_ptr, bias2_ptr, eps,
        eps2, at, exists, channel, SHORTCUT, False, LAST)
    FAST: tl.constexpr = x.dtype != tl.float32
    if BATCH:
        _store_once(invstd_ptr, invstd, cols, channels, LAST, ROWS, COLS)
        if SHORTCUT == 2:
            _store_once(invstd2_ptr, invstd2, cols, channels, LAST, ROWS, COLS)
    alpha, beta = _parameters(alpha_ptr, beta_ptr, ACT)
    a, b = _inner(alpha, beta, ACT)
    tl.store(y_ptr + at, _activated(z, a, b, ACT, FAST).to(x.dtype), mask=exists)


@triton.jit(
    do_not_specialize=['rows', 'channels', 'eps', 'eps2'],
    do_not_specialize_on_alignment=['alpha_ptr', 'beta_ptr', 'parts_ptr'])
def _gradient_kernel(
        x_ptr, shortcut_ptr, g_ptr, dx_ptr, dshortcut_ptr, alpha_ptr, beta_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr,
        mean2_ptr, var2_ptr, weight2_ptr, bias2_ptr, parts_ptr, eps, eps2, rows, cols, channels, ACT: tl.constexpr,
        SHORTCUT: tl.constexpr, BATCH: tl.constexpr, SUMS: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr,
        WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The gradient in the argument of f with BATCH, else those in x and the shortcut."""
    at, exists, channel = _tile(rows, cols, channels, LAST, EVEN, WIDE, ROWS, COLS)
    x, z, scale, _, scale2, _ = _argument(
        x_ptr, shortcut_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, mean2_ptr, var2_ptr, weight2_ptr, bias2_ptr, eps,
        eps2, at, exists, channel, SHORTCUT, BATCH, LAST)
    FAST: tl.constexpr = x.dtype != tl.float32
    alpha, beta = _parameters(alpha_ptr, beta_ptr, ACT)
    a, b = _inner(alpha, beta, ACT)
    g = tl.load(g_ptr + at, mask=exists, other=0.).to(tl.float32)
    slope, da, db = _derivatives(z, a, b, ACT, FAST)
    dz = g * slope
    if BATCH:
        tl.store(dx_ptr + at, dz.to(x.dtype), mask=exists)
    else:
        tl.store(dx_ptr + at, (dz * scale).to(x.dtype), mask=exists)
        if SHORTCUT == 1:
            tl.store(dshortcut_ptr + at, dz.to(x.dtype), mask=exists)
        if SHORTCUT == 2:
            tl.store(dshortcut_ptr + at, (dz * scale2).to(x.dtype), mask=exists)
    if SUMS:
        _store_sums(parts_ptr, g * da, g * db, alpha, beta, ACT)


def _width(cols: int, least: int, most: int) -> int:
    """Columns of a tile: the largest power of two that divides them, or one that covers a row or most of it."""
    width = cols & -cols
    return min(width if width >= least else triton.next_power_of_2(cols), most)


class _Tiles:
    """How a call is cut into tiles."""

    def __init__(self, x: Tensor) -> None:
        images, channels, height, width = x.shape
        self.last = not x.is_contiguous()
        rows, cols = (images * height * width, channels) if self.last else (images * channels, height * width)
        across = _width(cols, 16, 64) if self.last else _width(cols, 64, 1024)
        down = _BLOCK // across
        self.programs = triton.cdiv(rows, down) * triton.cdiv(cols, across)
        self.sizes = rows, cols, channels
        self.constants = self.last, cols % across == 0, (rows + down) * (cols + across) >= 2**31, down, across


def _run(
        kernel: Any, plan: Any, elements: list[Tensor | None], norms: list[list[Tensor]], alpha: Tensor | None,
        beta: Tensor | None, others: list[Tensor], *sums: bool) -> None:
    """Launch a kernel for x, the first of the elements; each norm is [mean, variance or invstd, weight, bias]."""
    x = elements[0]
    assert x is not None
    tiles = _Tiles(x)
    unused = norms[0][0]
    alpha, beta = (unused if p is None else p if p.dtype == float32 else p.to(float32) for p in (alpha, beta))
    if len(norms) == 1:
        norms = norms * 2
    settings = plan.norm, plan.norm if plan.shortcut_norm is None else plan.shortcut_norm
    shortcut = 0 if elements[1] is None else 1 if plan.shortcut_norm is None else 2
    tensors = [x if tensor is None else tensor for tensor in elements]
    small = [tensor for norm in norms for tensor in norm]
    constants = (_NAMES[plan.name], shortcut, plan.batch, *sums, *tiles.constants)
    cols = tiles.sizes[1]
    aligned = not any(tensor.data_ptr() % 16 for tensor in (*tensors, *small, *others))
    key = (
        x.get_device(), x.dtype, len(tensors), cols % 16 == 0, *constants, *(tensor.dtype for tensor in small),
    ) if aligned and cols > 1 else None
    _launch(kernel, key, x.get_device(), tiles.programs, (
        *tensors, alpha, beta, *small, *others, *(norm.eps for norm in settings), *tiles.sizes, *constants))


def _norms(
        statistics: list[Tensor], weight: Tensor, bias: Tensor, weight2: Tensor | None, bias2: Tensor | None,
) -> list[list[Tensor]]:
    if weight2 is None or bias2 is None:
        return [[*statistics[:2], weight, bias]]
    return [[*statistics[:2], weight, bias], [*statistics[2:], weight2, bias2]]


def forward(
        plan: Any, x: Tensor, alpha: Tensor | None, beta: Tensor | None, weight: Tensor, bias: Tensor,
        shortcut: Tensor | None, weight2: Tensor | None, bias2: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """The result; mean and 1/sqrt(variance + eps) of each norm, or without statistics of the batch mean and variance.

    Arguments are those of `norm.batch_norm_act` in a plan of it; x is dense and not empty.
    """
    y = empty_like(x)
    shortcut = None if shortcut is None else dense(shortcut, x)
    statistics: list[Tensor] = []
    for source, norm in ((x, plan.norm), (x if shortcut is None else shortcut, plan.shortcut_norm)):
        if norm is not None:
            statistics += torch.batch_norm_update_stats(
                source, norm.mean, norm.var, norm.momentum) if plan.batch else (norm.mean, norm.var)
    stored = [empty_like(mean) if plan.batch else mean for mean in statistics[::2]]
    _run(_value_kernel, plan, [x, shortcut, y], _norms(statistics, weight, bias, weight2, bias2), alpha, beta,
         [stored[0], stored[-1]])
    if plan.batch:
        statistics[1::2] = stored
    return y, statistics


def backward(
        plan: Any, grad: Tensor, statistics: list[Tensor], need_params: bool, x: Tensor, alpha: Tensor | None,
        beta: Tensor | None, weight: Tensor, bias: Tensor, shortcut: Tensor | None, weight2: Tensor | None,
        bias2: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradient in the sum of both branches, or without statistics of the batch those in x and in the shortcut.

    Then the sums for alpha and beta, if they are needed, in float32.
    """
    dx = empty_like(x)
    both = shortcut is not None and not plan.batch
    dshortcut = empty_like(x) if both else None
    parts = x.new_empty((_Tiles(x).programs, 2), dtype=float32) if need_params else statistics[0]
    elements = [x, None if shortcut is None else dense(shortcut, x), dense(grad, x), dx, dshortcut]
    _run(_gradient_kernel, plan, elements, _norms(statistics, weight, bias, weight2, bias2), alpha, beta, [parts],
         need_params)
    gradients = (dx,) if plan.batch else (dx, dshortcut)
    if not need_params:
        return *gradients, None, None
    sums, device = parts.new_empty((2, 1)), x.get_device()
    _launch(_sum_kernel, (device,), device, 1, (parts, sums[0], sums[1], len(parts), 1, 1024))
    return *gradients, *(
        None if p is None else total.reshape(p.shape) for p, total in zip((alpha, beta), sums, strict=True))
