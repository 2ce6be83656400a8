"""Activations on a GPU by Triton, in one pass over memory for the value and one for the gradient.

The formulas are those of `timm_paf.activations.functional`, in float32. A network's activation is limited by memory
as long as an element takes few operations, so exp is the GPU's own: for half precision directly, for float32 after
the argument is reduced, since its relative error grows with the argument. Results that are smaller than 1e-34 may be
0. Each block writes one partial sum for alpha and one for beta; these are added in float64 in a fixed order.
"""
# mypy: disable-error-code="no-untyped-def"
# (Triton's functions have no Python types.)
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, empty_like, float32, float64
from torch.torch_version import TorchVersion

from timm_paf.kernels.cpu import dense

__all__ = ['NAMES', 'gradients', 'value']

_CODES = {name: code for code, name in enumerate((
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'pssilu'))}
NAMES = frozenset(_CODES)
_BLOCK, _WARPS = 4096, 8

# In all functions FAST says that the result is rounded to half precision. Comparisons send NaN to the branch that
# keeps it.


@triton.jit
def _at_most(x, bound):
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _at_least(x, bound):
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _near(x):
    """The sigmoid and the root have reached their limits long before."""
    return _at_most(_at_least(x, -1e18), 1e18)


@triton.jit
def _exp(t, FAST: tl.constexpr):
    """exp(t) for t < 88; 0 for t < -87."""
    if FAST:
        return tl.exp2(t * 1.44269504)
    bounded = _at_least(t, -87.)
    n = tl.floor(bounded * 1.44269504 + 0.5)
    r = (bounded - n * 0.693359375) - n * -2.12194440e-4
    return tl.where(t < -87., 0., tl.exp2(r * 1.44269504) * tl.exp2(n))


@triton.jit
def _expm1(x, FAST: tl.constexpr):
    """exp(x) - 1 for x <= 0."""
    if FAST:
        return tl.where(x > -0.015625, x * (1 + x * (0.5 + x * 0.16666667)), _exp(x, FAST) - 1)
    bounded = _at_least(x, -87.)
    n = tl.floor(bounded * 1.44269504 + 0.5)
    r = (bounded - n * 0.693359375) - n * -2.12194440e-4
    p = 0.00019890990824673654 * r + 0.0013933649996309250
    p = p * r + 0.0083333109254809008
    p = p * r + 0.041666464925285905
    p = p * r + 0.16666666681623231
    p = p * r + 0.50000000134658092
    scale = tl.exp2(n)
    return (r + r * r * p) * scale + (scale - 1)


@triton.jit
def _log1p(u, FAST: tl.constexpr):
    """log(1 + u) for 0 <= u <= 1."""
    if FAST:
        # the polynomial of degree 5 with the least relative error of log(1 + u)/u, 2^-16.9
        p = 0.10122221 - u * 0.023869111
        p = p * u - 0.21004865
        p = p * u + 0.32520668
        p = p * u - 0.49936137
        return (p * u + 0.9999916) * u
    s = u / (2 + u)
    z = s * s
    p = 0.23224329224023349 * z + 0.21706575800880373
    p = p * z + 0.28592357994302838
    p = p * z + 0.39999706331929717
    p = p * z + 0.66666667320527413
    return (s + s) + s * z * p


@triton.jit
def _logistic(t, FAST: tl.constexpr):
    """sigmoid(t), 0 for t < -87, and sigmoid(-t), which is not 1 - sigmoid(t) rounded."""
    if FAST:
        odds = _at_most(tl.exp2(t * -1.44269504), 8.5e37)
    else:
        odds = _exp(_at_most(-t, 87.), FAST)
    s = 1 / (1 + odds)
    return tl.where(t < -87., 0., s), odds * s


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
def _store_sums(parts_ptr, da, db, alpha, beta, ACT: tl.constexpr):
    """Store the sums of a program for alpha and beta."""
    a_slope, b_slope = _inner_slopes(alpha, beta, ACT)
    program = tl.program_id(0)
    tl.store(parts_ptr + 2 * program, tl.sum(da) * a_slope)
    tl.store(parts_ptr + 2 * program + 1, tl.sum(db) * b_slope)


@triton.jit
def _bound(vanishes):
    """Bound on |x| in a product: finite where the other factor vanishes as x -> inf, else inf."""
    return tl.where(vanishes, 3.4e38, float('inf'))


@triton.jit
def _value(x, a, b, ACT: tl.constexpr, FAST: tl.constexpr):
    if ACT == 0:
        return tl.where(x <= 0, tl.maximum(x, -_bound(a == 0)) * a, x)
    if ACT == 1:
        return tl.where(x <= 0, 0., _at_most(x, _bound(a == 0)) * a)
    if ACT == 2:
        return tl.where(x <= 0, _expm1(x, FAST) * a, x)
    if ACT == 3:
        return tl.where(x <= 0, _expm1(x, FAST), _at_most(x, _bound(a == 0)) * a)
    if ACT == 4:
        return tl.maximum(x, -_bound(a > 1e-16)) * _logistic(_near(x) * a, FAST)[0]
    if ACT == 5:
        return _at_least(x, 0.) + _log1p(_exp(-tl.abs(x) * a, FAST), FAST) * (1 / a)
    if ACT == 6:
        p = _at_least(_near(x), 0.)
        return tl.minimum(tl.maximum(x, 0.), _bound(a == -1)) * (p / (tl.sqrt(p * p + 1) + 1) * a + 1)
    s, c = _logistic(_near(x) * a, FAST)
    bound = _bound(b == tl.where(a > 1e-16, 0., 0.5))
    return tl.minimum(tl.maximum(x, -bound), bound) * (s - c * (b / (1 - b)))


@triton.jit
def _slopes(x, a, b, ACT: tl.constexpr, FAST: tl.constexpr):
    """df/dx, df/da, df/db."""
    if ACT == 0:
        return tl.where(x <= 0, a, tl.where(x > 0, 1., x)), _at_most(x, 0.), x
    if ACT == 1:
        return tl.where(x <= 0, 0., tl.where(x > 0, a, x)), _at_least(x, 0.), x
    if ACT == 2:
        return tl.where(x <= 0, _exp(x, FAST) * a, tl.where(x > 0, 1., x)), _expm1(_at_most(x, 0.), FAST), x
    if ACT == 3:
        return tl.where(x <= 0, _exp(x, FAST), tl.where(x > 0, a, x)), _at_least(x, 0.), x
    near = _near(x)
    if ACT == 4:
        t = near * a
        s, c = _logistic(t, FAST)
        return s * (1 + t * c), (near * s) * (near * c), x
    if ACT == 5:
        size = tl.abs(near) * a
        low, high = _logistic(-size, FAST)
        rest = _log1p(_exp(-size, FAST), FAST) * (1 / a)
        return tl.where(x < 0, low, high), -(tl.abs(near) * low + rest) * (1 / a), x
    if ACT == 6:
        p = _at_least(near, 0.)
        root = tl.sqrt(p * p + 1)
        return tl.where(x <= 0, 0., p / root * a + 1), _at_least(x, 0.) * (p / (root + 1)), x
    t = near * a
    s, c = _logistic(t, FAST)
    scale = 1 / (1 - b)
    dx = s * (1 + (t * scale) * c) - c * (b * scale)
    db = -tl.minimum(x, _bound(a > 1e-16)) * (c * (scale * scale))
    return dx, (near * s) * (near * c) * scale, db


@triton.jit
def _places(count, channels, inner, BLOCK: tl.constexpr, PER_CHANNEL: tl.constexpr, WIDE: tl.constexpr):
    """Channel, places in memory, and which of them exist; `count` elements per channel."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    if not PER_CHANNEL:
        at = program * BLOCK + tl.arange(0, BLOCK)
        return 0, at, at < count
    channel = program % channels
    j = (program // channels) * BLOCK + tl.arange(0, BLOCK)
    return channel, (j // inner) * (channels * inner) + channel * inner + j % inner, j < count


@triton.jit(do_not_specialize_on_alignment=['alpha_ptr', 'beta_ptr'])
def _value_kernel(
        x_ptr, y_ptr, alpha_ptr, beta_ptr, count, channels, inner, ACT: tl.constexpr, PER_CHANNEL: tl.constexpr,
        WIDE: tl.constexpr, BLOCK: tl.constexpr):
    channel, at, exists = _places(count, channels, inner, BLOCK, PER_CHANNEL, WIDE)
    a, b = _inner(tl.load(alpha_ptr + channel), tl.load(beta_ptr + channel), ACT)
    x = tl.load(x_ptr + at, mask=exists, other=0.)
    FAST: tl.constexpr = x.dtype != tl.float32
    tl.store(y_ptr + at, _value(x.to(tl.float32), a, b, ACT, FAST).to(x.dtype), mask=exists)


@triton.jit(do_not_specialize_on_alignment=['alpha_ptr', 'beta_ptr', 'parts_ptr'])
def _gradient_kernel(
        g_ptr, x_ptr, dx_ptr, alpha_ptr, beta_ptr, parts_ptr, count, channels, inner, ACT: tl.constexpr,
        SUMS: tl.constexpr, PER_CHANNEL: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    channel, at, exists = _places(count, channels, inner, BLOCK, PER_CHANNEL, WIDE)
    alpha, beta = tl.load(alpha_ptr + channel), tl.load(beta_ptr + channel)
    a, b = _inner(alpha, beta, ACT)
    x = tl.load(x_ptr + at, mask=exists, other=0.)
    FAST: tl.constexpr = x.dtype != tl.float32
    g = tl.load(g_ptr + at, mask=exists, other=0.).to(tl.float32)
    dx, da, db = _slopes(x.to(tl.float32), a, b, ACT, FAST)
    tl.store(dx_ptr + at, (g * dx).to(x.dtype), mask=exists)
    if SUMS:
        _store_sums(parts_ptr, g * da, g * db, alpha, beta, ACT)


@triton.jit(
    do_not_specialize=['blocks', 'channels'], do_not_specialize_on_alignment=['parts_ptr', 'alpha_ptr', 'beta_ptr'])
def _sum_kernel(parts_ptr, alpha_ptr, beta_ptr, blocks, channels, BLOCK: tl.constexpr):
    """Add the partial sums of the blocks of one channel."""
    channel = tl.program_id(0)
    alpha, beta = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    start = 0
    while start < blocks:
        block = start + tl.arange(0, BLOCK)
        at = parts_ptr + 2 * (block * channels + channel)
        alpha += tl.load(at, mask=block < blocks, other=0.).to(tl.float64)
        beta += tl.load(at + 1, mask=block < blocks, other=0.).to(tl.float64)
        start += BLOCK
    tl.store(alpha_ptr + channel, tl.sum(alpha).to(tl.float32))
    tl.store(beta_ptr + channel, tl.sum(beta).to(tl.float32))


# Compiled kernels by what they depend on, for tensors of aligned, plain shapes. Triton looks at every argument of every
# call to find the compiled kernel, which takes the host longer than the launch itself.
_compiled: dict[tuple | None, Any] = {}
_DIRECT = TorchVersion(triton.__version__) >= '3.4'  # compiled kernels take all arguments, constants too


class _Call(NamedTuple):
    """Arguments of the kernels for an activation of x, in the layout of `out`."""
    name: str
    channels: int
    blocks: int  # of one channel
    parameters: tuple[Tensor, Tensor]  # alpha, beta
    sizes: tuple[int, int, int]
    wide: bool


def _call(x: Tensor, out: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int) -> _Call:
    size, channels = x.numel(), alpha.numel()
    if beta is None:
        beta = alpha
    elif beta.numel() > channels:
        channels = beta.numel()
    if channels == 1:
        inner = 1
        if alpha.dtype != float32 or beta.dtype != float32:
            alpha, beta = alpha.to(float32), beta.to(float32)
    else:
        inner = out.stride(channel_dim)
        alpha, beta = (p.to(float32).reshape(-1).expand(channels).contiguous() for p in (alpha, beta))
    count = size // channels
    return _Call(name, channels, -(-count // _BLOCK), (alpha, beta), (count, channels, inner), size >= 2**31 - _BLOCK)


def _run(kernel: Any, call: _Call, tensors: Sequence[Tensor], *parts: Tensor, **sums: bool) -> None:
    """Run a kernel on the GPU of its tensors; they are dense, and all have one layout."""
    constants = (_CODES[call.name], *sums.values(), call.channels > 1, call.wide, _BLOCK)
    plain = call.channels == 1 and call.sizes[0] % 16 == 0 and not call.wide
    for tensor in tensors:
        plain = plain and tensor.data_ptr() % 16 == 0
    key = (tensors[0].get_device(), tensors[0].dtype, call.name, len(tensors), *sums.values()) if plain else None
    _launch(
        kernel, key, tensors[0].get_device(), call.blocks * call.channels,
        (*tensors, *call.parameters, *parts, *call.sizes, *constants))


def _launch(kernel: Any, key: tuple | None, device: int, programs: int, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel, by its compiled form if `key` says which one that is."""
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _launch(kernel, key, device, programs, arguments)
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*arguments)
        return
    compiled = kernel[programs, 1, 1](*arguments, num_warps=_WARPS)
    if _DIRECT and key is not None and compiled is not None:  # Triton's interpreter compiles nothing
        _compiled[key] = compiled


def value(name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
    """The activation of x, as in `functional`; x is not empty, in float32, bfloat16 or float16."""
    y = empty_like(x)
    _run(_value_kernel, _call(x, y, alpha, beta, name, channel_dim), (dense(x, y), y))
    return y


def gradients(
        name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int, need_params: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Grad df/dx, like x, and if `need_params` the sums of grad df/dalpha and grad df/dbeta in float32."""
    dx = empty_like(x)
    call, tensors = _call(x, dx, alpha, beta, name, channel_dim), (dense(grad, dx), dense(x, dx), dx)
    if not need_params:
        _run(_gradient_kernel, call, tensors, call.parameters[0], SUMS=False)
        return dx, None, None
    parts = x.new_empty((call.blocks * call.channels, 2), dtype=float32)
    _run(_gradient_kernel, call, tensors, parts, SUMS=True)
    sums = parts.new_empty((2, call.channels))
    device = x.get_device()
    _launch(_sum_kernel, (device,), device, call.channels, (parts, sums[0], sums[1], call.blocks, call.channels, 1024))

    def of(parameter: Tensor, total: Tensor) -> Tensor:
        return (total.sum(dtype=float64) if parameter.numel() < len(total) else total).to(float32).reshape(
            parameter.shape)

    return dx, of(alpha, sums[0]), None if beta is None else of(beta, sums[1])
