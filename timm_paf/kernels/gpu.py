"""Activations on a GPU by Triton, in one pass over memory for the value and one for the gradient.

The formulas are those of `timm_paf.activations.functional`, in float32. exp and log1p are polynomials as on the CPU,
since the GPU's own exp loses digits for large arguments. Each block writes one partial sum, and these are added in
float64 in a fixed order.
"""
# mypy: disable-error-code="no-untyped-def"
# (Triton's functions have no Python types.)
import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ['NAMES', 'triton_gradients', 'triton_input_gradient', 'triton_value']

_CODES = {name: code for code, name in enumerate((
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'pssilu'))}
NAMES = frozenset(_CODES)
_BLOCK = 2048


@triton.jit
def _reduced(t):
    """exp(r) - 1 and 2^n with t = n log(2) + r, for -87 < t < 88."""
    n = tl.floor(t * 1.44269504 + 0.5)
    r = (t - n * 0.693359375) - n * -2.12194440e-4
    p = 0.00019890990824673654 * r + 0.0013933649996309250
    p = p * r + 0.0083333109254809008
    p = p * r + 0.041666464925285905
    p = p * r + 0.16666666681623231
    p = p * r + 0.50000000134658092
    return r + r * r * p, tl.exp2(n)


@triton.jit
def _exp(t):
    """exp(t) for -87 < t < 88."""
    p, scale = _reduced(t)
    return p * scale + scale


@triton.jit
def _tail(t, bounded):
    """exp(t - bounded) for t <= bounded; 0 where every product with it is 0."""
    return tl.where(t - bounded < -80., 0., _exp(tl.maximum(t - bounded, -80.)))


@triton.jit
def _keep_nan(value, x):
    return tl.where(x == x, value, x)


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0."""
    p, scale = _reduced(tl.maximum(x, -80.))
    return p * scale + (scale - 1)


@triton.jit
def _log1p(u):
    """log(1 + u) for 0 <= u <= 1."""
    s = u / (2 + u)
    z = s * s
    p = 0.23224329224023349 * z + 0.21706575800880373
    p = p * z + 0.28592357994302838
    p = p * z + 0.39999706331929717
    p = p * z + 0.66666667320527413
    return (s + s) + s * z * p


@triton.jit
def _near(x):
    return tl.minimum(tl.maximum(x, -1e18), 1e18)


@triton.jit
def _logistic(t):
    """sigmoid(t) as two factors; the second is 1 for t > -80."""
    bounded = tl.maximum(t, -80.)
    u = _exp(-tl.abs(tl.minimum(bounded, 80.)))
    return tl.where(t < 0, u, 1.) / (1 + u), _tail(tl.minimum(t, bounded), bounded)


@triton.jit
def _inner(alpha, beta, ACT: tl.constexpr):
    """The values of alpha and beta in the formula, inside their range."""
    a, b = alpha, beta
    if ACT == 4 or ACT == 7:
        a = tl.minimum(tl.abs(alpha), 1e4)
    if ACT == 5:
        a = tl.maximum(tl.minimum(tl.abs(alpha), 1e4), 1e-3)
    if ACT == 7:
        b = tl.minimum(tl.abs(beta), 0.99)
    return a, b


@triton.jit
def _inner_slopes(alpha, beta, ACT: tl.constexpr):
    """d/dalpha and d/dbeta of `_inner`; beyond the range, those at its edge."""
    da, db = 1., 1.
    if ACT == 4 or ACT == 5 or ACT == 7:
        da = tl.where(alpha < 0, -1., 1.)
    if ACT == 7:
        db = tl.where(beta < 0, -1., 1.)
    return da, db


@triton.jit
def _value(x, a, b, ACT: tl.constexpr):
    inf = float('inf')
    if ACT == 0:
        y = tl.where(x > 0, x, tl.maximum(x, tl.where(a == 0, -3.4e38, -inf)) * a)
    elif ACT == 1:
        y = tl.where(x > 0, tl.minimum(x, tl.where(a == 0, 3.4e38, inf)) * a, 0.)
    elif ACT == 2:
        y = tl.where(x > 0, x, _expm1(tl.minimum(x, 0.)) * a)
    elif ACT == 3:
        y = tl.where(x > 0, tl.minimum(x, tl.where(a == 0, 3.4e38, inf)) * a, _expm1(tl.minimum(x, 0.)))
    elif ACT == 4:
        s, tail = _logistic(_near(x) * a)
        y = tl.maximum(x, tl.where(a > 1e-16, -3.4e38, -inf)) * s * tail
    elif ACT == 5:
        size = tl.abs(_near(x) * a)
        bounded = tl.minimum(size, 80.)
        y = tl.maximum(x, 0.) + _log1p(_exp(-bounded)) / a * _tail(-size, -bounded)
    elif ACT == 6:
        p = tl.maximum(_near(x), 0.)
        chord = p / (tl.sqrt(p * p + 1) + 1)
        y = tl.minimum(tl.maximum(x, 0.), tl.where(a == -1, 3.4e38, inf)) * (chord * a + 1)
    else:
        t = _near(x) * a
        bounded = tl.maximum(t, -80.)
        odds = _exp(-tl.minimum(bounded, 80.))
        tail = _tail(tl.minimum(t, bounded), bounded)
        steep = a > 1e-16
        limit = tl.where(b == tl.where(steep, 0., 0.5), 3.4e38, inf)
        y = tl.minimum(tl.maximum(x, -limit), limit) * (1 / (1 + odds) / (1 - b)) * (tail * (1 - b) - odds * b)
    return _keep_nan(y, x)


@triton.jit
def _slopes(x, a, b, ACT: tl.constexpr):
    """df/dx, df/da, df/db."""
    db = x * 0.
    if ACT == 0:
        dx, da = tl.where(x > 0, 1., a), tl.minimum(x, 0.)
    elif ACT == 1:
        dx, da = tl.where(x > 0, a, 0.), tl.maximum(x, 0.)
    elif ACT == 2:
        low = tl.maximum(tl.minimum(x, 0.), -80.)
        dx = tl.where(x > 0, 1., (_exp(low) * a) * _tail(tl.minimum(x, low), low))
        da = _expm1(tl.minimum(x, 0.))
    elif ACT == 3:
        low = tl.maximum(tl.minimum(x, 0.), -80.)
        dx = tl.where(x > 0, a, _exp(low) * _tail(tl.minimum(x, low), low))
        da = tl.maximum(x, 0.)
    elif ACT == 4:
        near = _near(x)
        t = near * a
        s, tail = _logistic(t)
        c, rest = _logistic(-t)
        dx = (1 + t * c * rest) * s * tail
        da = (near * s) * (near * c) * (tail * rest)
    elif ACT == 5:
        near = _near(x)
        s, tail = _logistic(near * a)
        dx = s * tail
        size = tl.abs(near * a)
        bounded = tl.minimum(size, 80.)
        low, rest = _logistic(-size)
        da = -(tl.abs(near) * low * rest + _log1p(_exp(-bounded)) / a * _tail(-size, -bounded)) / a
    elif ACT == 6:
        p = tl.maximum(_near(x), 0.)
        root = tl.sqrt(p * p + 1)
        dx = tl.where(x > 0, p / root * a + 1, 0.)
        da = tl.maximum(x, 0.) * (p / (root + 1))
    else:
        near = _near(x)
        t = near * a
        bounded = tl.maximum(t, -80.)
        odds = _exp(-tl.minimum(bounded, 80.))
        s = 1 / (1 + odds)
        tail = _tail(tl.minimum(t, bounded), bounded)
        dx = (s / (1 - b)) * (tail * ((1 - b) + t * (odds * s)) - odds * b)
        c, rest = _logistic(-t)
        scaled = c / (1 - b)
        da = (near * s) * (near * scaled) * (tail * rest)
        db = -tl.minimum(x, tl.where(a > 1e-16, 3.4e38, float('inf'))) * (scaled / (1 - b)) * rest
    return _keep_nan(dx, x), _keep_nan(da, x), _keep_nan(db, x)


@triton.jit
def _where(count, channels, inner, BLOCK: tl.constexpr):
    """Channel, positions in memory, and which of them exist; `count` elements per channel."""
    program = tl.program_id(0).to(tl.int64)
    channel = program % channels
    j = (program // channels) * BLOCK + tl.arange(0, BLOCK)
    return channel, (j // inner) * (channels * inner) + channel * inner + j % inner, j < count


@triton.jit
def _value_kernel(
        x_ptr, y_ptr, alpha_ptr, beta_ptr, count, channels, inner, ACT: tl.constexpr, BLOCK: tl.constexpr):
    channel, at, exists = _where(count, channels, inner, BLOCK)
    a, b = _inner(tl.load(alpha_ptr + channel), tl.load(beta_ptr + channel), ACT)
    x = tl.load(x_ptr + at, mask=exists, other=0.).to(tl.float32)
    tl.store(y_ptr + at, _value(x, a, b, ACT).to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _gradient_kernel(
        g_ptr, x_ptr, dx_ptr, alpha_ptr, beta_ptr, parts_ptr, count, channels, inner, ACT: tl.constexpr,
        SUMS: tl.constexpr, BLOCK: tl.constexpr):
    channel, at, exists = _where(count, channels, inner, BLOCK)
    alpha, beta = tl.load(alpha_ptr + channel), tl.load(beta_ptr + channel)
    a, b = _inner(alpha, beta, ACT)
    x = tl.load(x_ptr + at, mask=exists, other=0.).to(tl.float32)
    g = tl.load(g_ptr + at, mask=exists, other=0.).to(tl.float32)
    dx, da, db = _slopes(x, a, b, ACT)
    tl.store(dx_ptr + at, (g * dx).to(dx_ptr.dtype.element_ty), mask=exists)
    if SUMS:
        a_slope, b_slope = _inner_slopes(alpha, beta, ACT)
        program = tl.program_id(0).to(tl.int64)
        tl.store(parts_ptr + 2 * program, tl.sum(g * da) * a_slope)
        tl.store(parts_ptr + 2 * program + 1, tl.sum(g * db) * b_slope)


def _kernel(function):
    """Make a kernel visible to torch.compile; not in Triton's interpreter, whose functions torch does not support."""
    return function if os.environ.get('TRITON_INTERPRET') == '1' else torch.library.wrap_triton(function)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _arguments(
        x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
) -> tuple[list[Tensor], list[int]]:
    """Alpha and beta in float32, one per channel, and (elements per channel, channels, stride of the channels)."""
    channels = max(alpha.numel(), 1 if beta is None else beta.numel())
    parameters = [
        parameter.to(torch.float32).reshape(-1).expand(channels).contiguous()
        for parameter in (alpha, alpha if beta is None else beta)]
    inner = out.stride(channel_dim) if channels > 1 else max(x.numel(), 1)
    return parameters, [x.numel() // channels, channels, inner]


def _programs(shape: list[int]) -> int:
    return math.ceil(shape[0] / _BLOCK) * shape[1]


@torch.library.triton_op('timm_paf::triton_value', mutates_args={})
def triton_value(x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int) -> Tensor:
    """The activation of x, as in `functional`; x is not empty, in float32, bfloat16 or float16."""
    y = torch.empty_like(x)
    parameters, shape = _arguments(x, y, alpha, beta, channel_dim)
    _kernel(_value_kernel)[(_programs(shape),)](_dense(x, y), y, *parameters, *shape, ACT=_CODES[name], BLOCK=_BLOCK)
    return y


@torch.library.triton_op('timm_paf::triton_input_gradient', mutates_args={})
def triton_input_gradient(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int) -> Tensor:
    """Grad df/dx, like x."""
    dx = torch.empty_like(x)
    parameters, shape = _arguments(x, dx, alpha, beta, channel_dim)
    _kernel(_gradient_kernel)[(_programs(shape),)](
        _dense(grad, dx), _dense(x, dx), dx, *parameters, parameters[0], *shape, ACT=_CODES[name], SUMS=False,
        BLOCK=_BLOCK)
    return dx


@torch.library.triton_op('timm_paf::triton_gradients', mutates_args={})
def triton_gradients(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Grad df/dx, and the sums of grad df/dalpha and grad df/dbeta in float32; the last is empty if beta is None."""
    dx = torch.empty_like(x)
    parameters, shape = _arguments(x, dx, alpha, beta, channel_dim)
    blocks = _programs(shape)
    parts = x.new_empty((blocks // shape[1], shape[1], 2), dtype=torch.float32)
    _kernel(_gradient_kernel)[(blocks,)](
        _dense(grad, dx), _dense(x, dx), dx, *parameters, parts, *shape, ACT=_CODES[name], SUMS=True, BLOCK=_BLOCK)
    sums = parts.sum(0, dtype=torch.float64)

    def of(parameter: Tensor, total: Tensor) -> Tensor:
        total = total.sum() if parameter.numel() == 1 else total
        return total.to(torch.float32).reshape(parameter.shape)

    return dx, of(alpha, sums[:, 0]), dx.new_empty(0, dtype=torch.float32) if beta is None else of(beta, sums[:, 1])
