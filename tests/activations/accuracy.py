"""Measure of the errors of the activations, in units in the last place; docs/concepts/numerics.md describes it.

Values and derivatives are compared with the formulas in extended precision (numpy's longdouble) at the same rounded x,
alpha and beta. The unit is the spacing of floating-point numbers at the exact result r or, where it is larger, at
|x dr/dx|, |alpha dr/dalpha| or |beta dr/dbeta|: the change of r when an argument changes by its own size, to first
order. So a result that depends on the last digits of its arguments is not expected to be more exact than those digits.
Below the smallest normal number the unit is the smallest subnormal number.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf.activations import functional

LIMIT = 1e4  # largest |x|
DTYPES = {
    'float64': torch.float64, 'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
QUANTITIES = ('value', 'd/dx', 'd/dα', 'd/dβ')


def _sigmoid(t):
    return 1 / (1 + np.exp(-t))


def _prelu0(x, a):
    return np.where(x > 0, x, a * x), np.where(x > 0, 1, a), np.minimum(x, 0)


def _preluplus(x, a):
    return np.where(x > 0, a * x, 0), np.where(x > 0, a, 0), np.maximum(x, 0)


def _pelu(x, a):
    low = np.minimum(x, 0)
    return np.where(x > 0, x, a * np.expm1(low)), np.where(x > 0, 1, a * np.exp(low)), np.expm1(low)


def _peluplus(x, a):
    low = np.minimum(x, 0)
    return np.where(x > 0, a * x, np.expm1(low)), np.where(x > 0, a, np.exp(low)), np.maximum(x, 0)


def _psilu(x, a):
    sign, a = np.where(a < 0, -1, 1), np.abs(a)
    s, c = _sigmoid(a * x), _sigmoid(-a * x)
    return x * s, s + a * x * s * c, sign * (x * x * s * c)


def _psoftplus(x, a):
    sign, a = np.where(a < 0, -1, 1), np.abs(a)
    rest = np.log1p(np.exp(-np.abs(a * x))) / a
    return np.maximum(x, 0) + rest, _sigmoid(a * x), -sign * (np.abs(x) * _sigmoid(-np.abs(a * x)) + rest) / a


def _reblu(x, a):
    p = np.maximum(x, 0)
    root = np.sqrt(p * p + 1)
    chord = p * p / (root + 1)  # sqrt(x^2 + 1) - 1
    return p + a * chord, np.where(x > 0, 1 + a * p / root, 0), chord


def _pssilu(x, a, b):
    a_sign, b_sign, a, b = np.where(a < 0, -1, 1), np.where(b < 0, -1, 1), np.abs(a), np.abs(b)
    s, c = _sigmoid(a * x), _sigmoid(-a * x)
    return (x * (s - b) / (1 - b), (s - b + a * x * s * c) / (1 - b), a_sign * (x * x * s * c / (1 - b)),
            b_sign * (-x * c / (1 - b)**2))


def _ssilu(x, b):
    f, dx, _, db = _pssilu(x, np.ones_like(b), b)
    return f, dx, db


# value and derivatives (the derivative of |p| at p = 0 is +1), and the parameters to try: initial, learned and negative
# ones, and the ends of the range
FORMULAS: dict[str, tuple[Callable, tuple[tuple[float, ...], ...]]] = {
    'prelu0': (_prelu0, ((0.,), (0.25,), (-1.5,))),
    'preluplus': (_preluplus, ((1.,), (0.4,), (-2.,))),
    'pelu': (_pelu, ((1.,), (0.3,), (-2.,), (7.,))),
    'peluplus': (_peluplus, ((1.,), (0.3,), (-2.,))),
    'psilu': (_psilu, ((1.,), (-0.3,), (2.4,), (0.,), (1e-6,), (1e4,))),
    'psoftplus': (_psoftplus, ((1.,), (-0.3,), (3.6,), (1e-3,), (1e4,))),
    'reblu': (_reblu, ((0.,), (0.6,), (3.,), (-0.5,), (-1.,))),
    'ssilu': (_ssilu, ((0.3,), (-0.05,), (0.9,), (0.,), (0.99,))),
    'pssilu_fixed': (_pssilu, ((1., 0.3), (-2., 0.1), (0., 0.3), (100., 0.99))),
    'pssilu': (_pssilu, ((1., 1e-8), (2.3, 0.05), (-0.4, -0.3), (1., 0.), (0., 0.3), (1e4, 0.3), (1., 0.99))),
}

SMOOTH = {  # parameters away from every kink and edge
    'prelu0': (0.25,), 'preluplus': (0.4,), 'pelu': (0.3,), 'peluplus': (-0.3,), 'psilu': (1.3,), 'psoftplus': (-0.7,),
    'reblu': (0.6,), 'ssilu': (0.3,), 'pssilu_fixed': (-0.8, 0.3), 'pssilu': (1.3, -0.2)}

# bounds of value, d/dx and the derivatives by the parameters in float32 and float64: the worst error that was measured,
# and some room for the exp of another machine
STATED: dict[str, tuple[float, ...]] = {
    'prelu0': (0.51, 0., 0.),
    'preluplus': (0.51, 0., 0.),
    'pelu': (4., 4., 2.),
    'peluplus': (4., 1., 0.),
    'psilu': (4., 5., 5.),
    'psoftplus': (3., 4., 5.),
    'reblu': (4., 3., 3.),
    'ssilu': (6., 6., 6.),
    'pssilu_fixed': (6., 6., 6., 6.),
    'pssilu': (6., 6., 6., 6.),
}
STATED_HALF = 0.501  # value and d/dx in bfloat16 and float16; the derivatives by the parameters are float32 there
STATED_SUM = 1.  # gradient of a parameter, in the unit of `sum_error`


class Errors(NamedTuple):
    """Errors of one function at many x, by quantity, in the unit that this file describes."""
    x: np.ndarray
    ulps: dict[str, np.ndarray]


def quantities(name: str) -> tuple[str, ...]:
    """Names of the results of a formula, in order."""
    labels = {'ssilu': ('d/dβ',), 'pssilu': ('d/dα', 'd/dβ'), 'pssilu_fixed': ('d/dα', 'd/dβ')}
    return ('value', 'd/dx', *labels.get(name, ('d/dα',)))


def stated(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Bound of each quantity."""
    bounds = dict(zip(quantities(name), STATED[name], strict=True))
    return {**bounds, 'value': STATED_HALF, 'd/dx': STATED_HALF} if torch.finfo(dtype).bits == 16 else bounds


def spacing(magnitude: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Distance between neighbouring numbers of a dtype at a magnitude."""
    info = torch.finfo(dtype)
    with np.errstate(all='ignore'):
        exponent = np.frexp(np.maximum(magnitude.astype(np.float64), info.tiny))[1] - 1
    return np.ldexp(np.longdouble(info.eps), exponent)


def reference(name: str, x: np.ndarray, parameters: tuple[float, ...], kind=np.longdouble) -> list[np.ndarray]:
    """Value and derivatives of the textbook formula in extended precision (or another numpy type)."""
    with np.errstate(all='ignore'):
        wide = x.astype(kind)
        return [np.broadcast_to(r, x.shape) for r in FORMULAS[name][0](wide, *(np.array(p, kind) for p in parameters))]


def sensitivity(
        name: str, x: np.ndarray, parameters: tuple[float, ...], kind=np.float64, step: float = 2.**-17,
) -> list[np.ndarray]:
    """The largest of |x dr/dx|, |alpha dr/dalpha| and |beta dr/dbeta| for every result r, by central differences."""
    largest = [np.zeros(x.shape) for _ in quantities(name)]
    arguments: list[Any] = [x.astype(kind), *parameters]
    for i in range(len(arguments)):
        up, down = list(arguments), list(arguments)
        up[i], down[i] = up[i] * (1 + step), down[i] * (1 - step)
        above = reference(name, up[0], tuple(up[1:]), kind)
        below = reference(name, down[0], tuple(down[1:]), kind)
        with np.errstate(all='ignore'):
            largest = [
                np.fmax(old, np.abs(u - d) / (2 * step)) for old, u, d in zip(largest, above, below, strict=True)]
    return largest


def computed(name: str, x: Tensor, parameters: tuple[float, ...]) -> list[Tensor]:
    """Value and derivatives as the package computes them, those of alpha and beta for every element by itself."""
    function = getattr(functional, name)
    kind = compute_dtype(x.dtype)
    x = x.clone().requires_grad_()
    shared = [torch.tensor([p], dtype=kind) for p in parameters]
    value = function(x, *shared)
    (dx,) = torch.autograd.grad(value.sum(), x)
    per_element = [torch.full(x.shape, p, dtype=kind, requires_grad=True) for p in parameters]
    gradients = torch.autograd.grad(function(x.detach(), *per_element, 0), per_element, torch.ones_like(x))
    return [value.detach(), dx, *gradients]


def measure(name: str, x: Tensor, parameters: tuple[float, ...]) -> Errors:
    """Errors at every x (1-d, finite) for one choice of parameters."""
    parameters = tuple(torch.tensor(p, dtype=compute_dtype(x.dtype)).item() for p in parameters)
    at = x.double().numpy()
    ulps = {}
    kind = np.longdouble if x.dtype == torch.float64 else np.float64
    results = zip(
        quantities(name), computed(name, x, parameters), reference(name, at, parameters),
        sensitivity(name, at, parameters, kind), strict=True)
    for label, ours, exact, moves in results:
        got = ours.double().numpy()
        with np.errstate(all='ignore'):
            unit = spacing(np.maximum(np.abs(exact), moves), ours.dtype)
            error = np.abs(got.astype(np.longdouble) - exact) / unit
            # what exceeds the format is infinite in it
            overflow = np.abs(exact) >= torch.finfo(ours.dtype).max + spacing(np.abs(exact), ours.dtype) / 2
            error = np.where(overflow & (got == np.copysign(np.inf, exact)), 0, error)
        ulps[label] = np.where(np.isnan(error), np.inf, error).astype(np.float64)
    return Errors(at, ulps)


def _around(points: np.ndarray, dtype: torch.dtype, count: int = 64) -> Tensor:
    """Numbers of a dtype next to some points."""
    centre = torch.tensor(points).to(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    return (centre.view(bits)[:, None] + torch.arange(-count, count + 1, dtype=bits)).view(dtype).flatten()


def _zeros(name: str, parameters: tuple[float, ...]) -> np.ndarray:
    """Where the value or a derivative crosses zero: zeros, extrema and turning points."""
    grid = np.concatenate([-np.logspace(4, -4, 4000), np.logspace(-4, 4, 4000)])
    found = []
    for index in range(len(quantities(name))):
        def sign_at(x, index=index):
            return np.sign(reference(name, x, parameters, np.float64)[index])
        signs = sign_at(grid)
        cross = np.flatnonzero(signs[:-1] * signs[1:] < 0)
        low, high, sign = grid[cross], grid[cross + 1], signs[cross]
        for _ in range(60):
            middle = (low + high) / 2
            same = sign_at(middle) == sign
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        found.append(low)
    return np.concatenate(found)


def grid(name: str, parameters: tuple[float, ...], dtype: torch.dtype, *, per_binade: int = 128) -> Tensor:
    """Inputs of one measurement, all within +-1e4.

    bfloat16 and float16: every number, or fewer where `per_binade` is below 16. float32 and float64: +-0, the ends, the
    smallest subnormal and normal numbers, `per_binade` random numbers of either sign in every binade that float32 has,
    160 `per_binade` numbers spread evenly where |alpha x| < 120, and the 129 numbers around every zero of the value and
    of its derivatives.
    """
    if torch.finfo(dtype).bits == 16:
        every = torch.arange(-2**15, 2**15, max(1, 16 // per_binade)).to(torch.int16).view(dtype)
        return every[every.abs() <= LIMIT]
    generator = torch.Generator().manual_seed(0)
    exponents = torch.arange(-149, 14, dtype=torch.float64)
    mantissas = 1 + torch.rand(len(exponents), per_binade, generator=generator, dtype=torch.float64)
    random = (mantissas * torch.exp2(exponents)[:, None]).flatten()
    scale = max(abs(parameters[0]), 1e-2) if name not in ('ssilu', 'prelu0', 'preluplus', 'reblu') else 1.
    even = torch.linspace(-120, 120, 160 * per_binade, dtype=torch.float64) / scale
    info = torch.finfo(dtype)
    special = torch.tensor(
        [0., LIMIT, 1., info.tiny, info.smallest_normal * info.eps, 87.3, 88.7, 103.9], dtype=torch.float64)
    points = torch.cat([random, -random, even, special, -special]).to(dtype)
    points = torch.cat([points, _around(_zeros(name, parameters), dtype)])
    return points[points.abs() <= LIMIT]


def sum_error(dtype: torch.dtype, layout: Callable[[Tensor], Tensor], n: int = 4 * 2**20) -> float:
    """Error of PSSiLU's gradient of alpha over n elements, relative to the sum of absolute terms, in units of float32.

    The unit is 2^-24 of that sum: what one rounding of it costs.
    """
    torch.manual_seed(0)
    x = layout(torch.randn(16, 64, 64, n // 65536).to(dtype))
    grad = torch.randn(x.shape).to(dtype)
    alpha, beta = torch.tensor([1.3], requires_grad=True), torch.tensor([0.1])
    (ours,) = torch.autograd.grad(functional.pssilu(x, alpha, beta), alpha, grad)
    wide = [float(alpha.detach()), float(beta)]
    terms = reference('pssilu', x.double().numpy(), tuple(wide), np.float64)[2] * grad.double().numpy()
    return abs(ours.item() - float(terms.sum(dtype=np.longdouble))) / (np.abs(terms).sum() * 2.**-24)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat_interleave(2, -1)[..., ::2],
    'transposed': lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    'expanded': lambda x: x[:1, :, :, :1].expand(x.shape),
    'one pixel': lambda x: x[:, :, :1, :1].contiguous(),
}
