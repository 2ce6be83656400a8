"""Parametric activation functions f(x, alpha, beta): the definitions that everything else is tested against.

Every function takes a floating-point tensor of any shape and returns one of the same shape, dtype, device and layout.
Half-precision inputs are computed in float32 and rounded once; the gradients of alpha and beta are then summed in
float32. alpha and beta are numbers or floating-point tensors of shape (), (1,) or, for one value per channel along
`channel_dim`, (C,). They are rounded to the dtype of the computation; their dtype and device may differ from x's. Each
function is differentiable any number of times in x, alpha and beta, in reverse and forward mode and under `torch.func`,
and saves only x for the backward pass. docs/tables/accuracy.md states the largest errors, in units in the last place.

Infinite inputs give the limits of value and derivatives, and only NaN gives NaN. At a kink (x = 0 of PReLU, PELU and
ReBLU) the derivative is that of the side x <= 0.

Where a formula uses |alpha| or |beta|, it limits them to the range in its docstring, so that neither the value nor a
gradient is infinite at the edge. Outside the range the gradient is the one at the edge, so that training can return to
it; for the same reason the derivative of |p| at p = 0 is +1.

Before each function are its value and its partial derivatives df/dx, df/da, df/db in closed form. They get tensors of
one dtype, at least float32. Notation: a = |alpha|, t = a x, s = sigmoid(t), c = 1 - s = sigmoid(-t).

Source: Dai, Mahloujifar and Mittal, "Parameterizing Activation Functions for Adversarial Robustness", arXiv 2110.05626.
"""
import torch
from torch import Tensor

from timm_paf.activations.constraints import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN
from timm_paf.activations.differentiation import FORMULAS, Formula, absolute, align, widen
from timm_paf.activations.dispatch import apply
from timm_paf.activations.elementary import (
    expm1_negative,
    logistic,
    near,
    odds_factors,
    reach,
    saturates,
    saturation,
    sharpness,
    shift,
    softplus_rest,
    softplus_sharpness,
    step,
)

__all__ = [
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu',
    'ALPHA_MAX', 'PSOFTPLUS_ALPHA_MIN', 'BETA_MAX',
]

Partials = tuple[Tensor, Tensor | None, Tensor | None]


def _prelu0(x: Tensor, alpha: Tensor) -> Tensor:
    # x as the sum of its two sides, the negative one with the slope 1 at 0; infinite only on the side that it is on
    limit = reach(alpha == 0, alpha)
    bounded = torch.maximum(x.clamp(max=3.4e38), -limit)
    return torch.relu(x) + (bounded - torch.relu(bounded)) * alpha


def _prelu0_partials(x: Tensor, alpha: Tensor, beta: None, need_params: bool) -> Partials:
    dx = torch.lerp(alpha, torch.ones_like(alpha), step(x))
    return dx, x.clamp(max=0) if need_params else None, None


def prelu0(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PReLU: x for x > 0, alpha x for x <= 0.

    .. math:: f(x) = \max(x, 0) + \alpha\min(x, 0)

    Args:
        x: Floating-point tensor of any shape.
        alpha: Slope on negative inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 0 (ReLU).
        channel_dim: Dimension of x for a parameter of shape (C,).

    Returns:
        Tensor like x.

    Raises:
        TypeError: If x is not a floating-point tensor.
        ValueError: If a (C,) parameter does not fit x.

    Source: He et al., arXiv 1502.01852; PReLU of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        return _prelu0(widen(x), align(alpha, x, channel_dim)).to(x.dtype)
    else:
        return apply('prelu0', x, alpha, None, channel_dim)


def _preluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.minimum(torch.relu(x), reach(alpha == 0, alpha)) * alpha


def _preluplus_partials(x: Tensor, alpha: Tensor, beta: None, need_params: bool) -> Partials:
    return step(x) * alpha, torch.relu(x) if need_params else None, None


def preluplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PReLU+: alpha x for x > 0, 0 otherwise.

    .. math:: f(x) = \alpha\max(x, 0)

    Args:
        alpha: Slope on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ReLU).

    Other arguments, result and errors are as for `prelu0`.
    Source: PReLU+ of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        return _preluplus(widen(x), align(alpha, x, channel_dim)).to(x.dtype)
    else:
        return apply('preluplus', x, alpha, None, channel_dim)


def _pelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.relu(x) + expm1_negative(x) * alpha


def _pelu_partials(x: Tensor, alpha: Tensor, beta: None, need_params: bool) -> Partials:
    below = x.clamp(max=0)
    dx = torch.lerp(torch.exp(below) * alpha, torch.ones_like(alpha), step(x))
    return dx, torch.expm1(below) if need_params else None, None


def pelu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PELU: x for x > 0, alpha (exp(x) - 1) otherwise.

    .. math:: f(x) = \max(x, 0) + \alpha\,(e^{\min(x, 0)} - 1)

    Args:
        alpha: Depth of the negative side, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ELU).

    Other arguments, result and errors are as for `prelu0`.
    Source: PELU of arXiv 2110.05626 (one parameter, unlike the two of arXiv 1605.09332).
    """
    if torch.jit.is_scripting():
        return _pelu(widen(x), align(alpha, x, channel_dim)).to(x.dtype)
    else:
        return apply('pelu', x, alpha, None, channel_dim)


def _peluplus(x: Tensor, alpha: Tensor) -> Tensor:
    return _preluplus(x, alpha) + expm1_negative(x)


def _peluplus_partials(x: Tensor, alpha: Tensor, beta: None, need_params: bool) -> Partials:
    dx = torch.lerp(torch.exp(x.clamp(max=0)), alpha, step(x))
    return dx, torch.relu(x) if need_params else None, None


def peluplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PELU+: alpha x for x > 0, exp(x) - 1 otherwise.

    .. math:: f(x) = \alpha\max(x, 0) + e^{\min(x, 0)} - 1

    Args:
        alpha: Slope on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ELU).

    Other arguments, result and errors are as for `prelu0`.
    Source: PELU+ of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        return _peluplus(widen(x), align(alpha, x, channel_dim)).to(x.dtype)
    else:
        return apply('peluplus', x, alpha, None, channel_dim)


def _psilu(x: Tensor, a: Tensor) -> Tensor:
    s, tail = logistic(near(x) * a)
    return torch.maximum(x, -reach(saturates(a), a)) * s * tail


def _psilu_partials(x: Tensor, a: Tensor, beta: None, need_params: bool) -> Partials:
    bounded = near(x)
    t = bounded * a
    s, tail = logistic(t)
    if not need_params:
        return (1 + t * torch.sigmoid(-t)) * s * tail, None, None
    c, complement_tail = logistic(-t)
    dx = (1 + t * c * complement_tail) * s * tail
    return dx, (bounded * s) * (bounded * c) * (tail * complement_tail), None


def psilu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSiLU: x sigmoid(|alpha| x).

    .. math:: f(x) = x\,\sigma(\lvert\alpha\rvert x)

    Args:
        alpha: Sharpness, |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1 (SiLU).

    Other arguments, result and errors are as for `prelu0`.
    Source: PSiLU of arXiv 2110.05626; Swish with a trainable beta of arXiv 1710.05941, without the absolute value.
    """
    if torch.jit.is_scripting():
        return _psilu(widen(x), sharpness(align(alpha, x, channel_dim))).to(x.dtype)
    else:
        return apply('psilu', x, alpha, None, channel_dim)


def _psoftplus(x: Tensor, a: Tensor) -> Tensor:
    # max(x, 0) + log1p(exp(-|t|))/a: the linear part is exact, the exponential is at most 1. `maximum` has the slope
    # 1/2 at 0, and so has the whole.
    size = (near(x) * a).abs()
    return torch.maximum(x, x.new_zeros(())) + softplus_rest(size, a)


def _psoftplus_partials(x: Tensor, a: Tensor, beta: None, need_params: bool) -> Partials:
    bounded = near(x)
    t = bounded * a
    s, tail = logistic(t)
    dx = s * tail
    if not need_params:
        return dx, None, None
    # (x s - f)/a with both terms of one sign for every x, so nothing cancels
    size = t.abs()
    s, tail = logistic(-size)
    return dx, -(bounded.abs() * s * tail + softplus_rest(size, a)) / a, None


def psoftplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSoftplus: log(1 + exp(|alpha| x)) / |alpha|, which is log(2)/|alpha| at x = 0.

    .. math:: f(x) = \frac{1}{\lvert\alpha\rvert}\log(1 + e^{\lvert\alpha\rvert x})

    Args:
        alpha: Sharpness, `PSOFTPLUS_ALPHA_MIN` <= |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts
            it at 1 (Softplus).

    Other arguments, result and errors are as for `prelu0`.
    Source: PSoftplus of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        return _psoftplus(widen(x), softplus_sharpness(align(alpha, x, channel_dim))).to(x.dtype)
    else:
        return apply('psoftplus', x, alpha, None, channel_dim)


def _reblu(x: Tensor, alpha: Tensor) -> Tensor:
    # the factor vanishes for x -> inf if alpha = -1
    limit = reach(alpha == -1, alpha)
    return torch.minimum(torch.relu(x), limit) * (saturation(x)[0] * alpha + 1)


def _reblu_partials(x: Tensor, alpha: Tensor, beta: None, need_params: bool) -> Partials:
    chord, slope = saturation(x)
    dx = step(x) * (slope * alpha + 1)
    return dx, torch.relu(x) * chord if need_params else None, None


def reblu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""ReBLU: x + alpha (sqrt(x^2 + 1) - 1) for x > 0, 0 otherwise.

    .. math:: f(x) = x + \alpha\,(\sqrt{x^2 + 1} - 1) \text{ for } x > 0, \quad 0 \text{ otherwise}

    Args:
        alpha: Bend on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 0 (ReLU).

    Other arguments, result and errors are as for `prelu0`.
    Source: ReBLU of arXiv 2110.05626 (`pblu` in the authors' code), after the bent identity.
    """
    if torch.jit.is_scripting():
        return _reblu(widen(x), align(alpha, x, channel_dim)).to(x.dtype)
    else:
        return apply('reblu', x, alpha, None, channel_dim)


def _pssilu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # s - b = s (1 - b - b c/s): where s is near 1, the difference s - b has lost what 1 - b still has
    odds, s, tail = odds_factors(near(x) * a)
    # the last factor vanishes for x -> -inf if b = 0, and for every x if a = 0 and b = 1/2
    limit = reach(((b == 0) & saturates(a)) | ((b == 0.5) & ~saturates(a)), a + b)
    bounded = torch.minimum(torch.maximum(x, -limit), limit)
    return bounded * (s / (1 - b)) * (tail * (1 - b) - odds * b)


def _pssilu_partials(x: Tensor, a: Tensor, b: Tensor, need_params: bool) -> Partials:
    bounded = near(x)
    t = bounded * a
    odds, s, tail = odds_factors(t)
    dx = (s / (1 - b)) * (tail * ((1 - b) + t * (odds * s)) - odds * b)
    if not need_params:
        return dx, None, None
    c, complement_tail = logistic(-t)
    scaled = c / (1 - b)
    da = (bounded * s) * (bounded * scaled) * (tail * complement_tail)
    db = -torch.minimum(x, reach(saturates(a), a)) * (scaled / (1 - b)) * complement_tail
    return dx, da, db


def pssilu(x: Tensor, alpha: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSSiLU: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|).

    .. math:: f(x) = x\,\frac{\sigma(\lvert\alpha\rvert x) - \lvert\beta\rvert}{1 - \lvert\beta\rvert}

    Args:
        alpha: Sharpness, |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1.
        beta: Shift that makes outputs positive on negative inputs, |beta| <= `BETA_MAX`; as alpha. The published
            models start it at 1e-8.

    Other arguments, result and errors are as for `prelu0`.
    Source: PSSiLU of arXiv 2110.05626 (`pssilu2` in the authors' code).
    """
    if torch.jit.is_scripting():
        a = sharpness(align(alpha, x, channel_dim))
        b = shift(align(beta, x, channel_dim))
        return _pssilu(widen(x), a, b).to(x.dtype)
    else:
        return apply('pssilu', x, alpha, beta, channel_dim)


def pssilu_fixed(x: Tensor, alpha: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSSiLU with a constant shift: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|), the same function as `pssilu`.

    .. math:: f(x) = x\,\frac{\sigma(\lvert\alpha\rvert x) - \lvert\beta\rvert}{1 - \lvert\beta\rvert}

    Args:
        alpha: Sharpness, |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1.
        beta: Shift, |beta| <= `BETA_MAX`; as alpha. The paper holds it at 0.3.

    Other arguments, result and errors are as for `prelu0`.
    Source: `pssilu` in the authors' code of arXiv 2110.05626.
    """
    return pssilu(x, alpha, beta, channel_dim)


def ssilu(x: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""SSiLU, the shifted SiLU: x (sigmoid(x) - |beta|) / (1 - |beta|).

    .. math:: f(x) = x\,\frac{\sigma(x) - \lvert\beta\rvert}{1 - \lvert\beta\rvert}

    Args:
        beta: Shift, |beta| <= `BETA_MAX`; a number, (), (1,) or (C,). The paper holds it at 0.3.

    Other arguments, result and errors are as for `prelu0`.
    Source: SSiLU of arXiv 2110.05626; PSSiLU at alpha = 1.
    """
    if torch.jit.is_scripting():
        b = shift(align(beta, x, channel_dim))
        return _pssilu(widen(x), torch.ones_like(b), b).to(x.dtype)
    else:
        return apply('pssilu', x, 1., beta, channel_dim)


FORMULAS.update({
    'prelu0': Formula(_prelu0, _prelu0_partials),
    'preluplus': Formula(_preluplus, _preluplus_partials),
    'pelu': Formula(_pelu, _pelu_partials),
    'peluplus': Formula(_peluplus, _peluplus_partials),
    'psilu': Formula(_psilu, _psilu_partials, absolute(sharpness)),
    'psoftplus': Formula(_psoftplus, _psoftplus_partials, absolute(softplus_sharpness)),
    'reblu': Formula(_reblu, _reblu_partials),
    'pssilu': Formula(_pssilu, _pssilu_partials, absolute(sharpness), absolute(shift)),
})
for _name in __all__:  # torch.fx records a call of the function instead of tracing into it
    if _name.islower():
        torch.fx.wrap(_name)
