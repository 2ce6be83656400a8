"""Parametric activation functions f(x, alpha, beta): the definitions that everything else here is tested against.

Every function takes a floating-point tensor of any shape and returns one of the same shape, dtype, device and layout.
Half-precision inputs are computed in float32 and rounded once, and the sums for the gradients of alpha and beta are
float32 sums. alpha and beta are numbers or floating-point tensors of shape (), (1,) or, for one value per channel along
`channel_dim`, (C,); they are rounded to the dtype of the computation, and their dtype and device need not be x's. Each
function is differentiable any number of times in x, alpha and beta, in reverse and in forward mode and under
`torch.func`, and keeps x alone for the backward pass. How far the results are from the exact ones is stated, in units
in the last place, in docs/tables/accuracy.md.

Infinite inputs give the limits of value and derivatives, and only NaN gives NaN. At a kink (x = 0 of PReLU, PELU and
ReBLU) the derivative is that of the side x <= 0.

Where a formula uses |alpha| or |beta| it holds them inside the range named in its docstring, so that neither the value
nor a gradient is infinite at the edge. Outside the range the gradient is the one at the edge, so that training can walk
back in; the derivative of |p| at p = 0 is taken as +1 for the same reason.

Source: Dai, Mahloujifar and Mittal, "Parameterizing Activation Functions for Adversarial Robustness", arXiv 2110.05626.
"""
import torch
from torch import Tensor

from timm_paf.activations import formulas
from timm_paf.activations.differentiation import align, widen
from timm_paf.activations.dispatch import apply
from timm_paf.activations.formulas import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN

__all__ = [
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu',
    'ALPHA_MAX', 'PSOFTPLUS_ALPHA_MIN', 'BETA_MAX',
]


def prelu0(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PReLU: x for x > 0, alpha x for x <= 0.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Slope on negative inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 0 (ReLU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError: If x is not a floating-point tensor.
        ValueError: If a (C,) parameter does not fit x.

    Source: He et al., arXiv 1502.01852; PReLU of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        return formulas.prelu0(wide, align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return apply('prelu0', x, alpha, None, channel_dim)


def preluplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PReLU+: alpha x for x > 0, 0 otherwise.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Slope on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ReLU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PReLU+ of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        return formulas.preluplus(wide, align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return apply('preluplus', x, alpha, None, channel_dim)


def pelu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PELU: x for x > 0, alpha (exp(x) - 1) otherwise.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Depth of the negative side, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ELU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PELU of arXiv 2110.05626 (one parameter, unlike the two of arXiv 1605.09332).
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        return formulas.pelu(wide, align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return apply('pelu', x, alpha, None, channel_dim)


def peluplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PELU+: alpha x for x > 0, exp(x) - 1 otherwise.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Slope on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 1 (ELU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PELU+ of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        return formulas.peluplus(wide, align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return apply('peluplus', x, alpha, None, channel_dim)


def psilu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSiLU: x sigmoid(|alpha| x).

    Args:
        x: Floating-point tensor of any shape.
        alpha: Sharpness, |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1 (SiLU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PSiLU of arXiv 2110.05626; Swish with a trainable beta of arXiv 1710.05941, without the absolute value.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        a = formulas.sharpness(align(alpha, wide, channel_dim))
        return formulas.psilu(wide, a).to(x.dtype)
    else:
        return apply('psilu', x, alpha, None, channel_dim)


def psoftplus(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSoftplus: log(1 + exp(|alpha| x)) / |alpha|.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Sharpness, `PSOFTPLUS_ALPHA_MIN` <= |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts
            it at 1 (Softplus).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x; at x = 0 it is log(2)/|alpha|.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PSoftplus of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        a = formulas.softplus_sharpness(align(alpha, wide, channel_dim))
        return formulas.psoftplus(wide, a).to(x.dtype)
    else:
        return apply('psoftplus', x, alpha, None, channel_dim)


def reblu(x: Tensor, alpha: Tensor, channel_dim: int = 1) -> Tensor:
    r"""ReBLU: x + alpha (sqrt(x^2 + 1) - 1) for x > 0, 0 otherwise.

    Args:
        x: Floating-point tensor of any shape.
        alpha: Bend on positive inputs, any finite value; a number, (), (1,) or (C,). The paper starts it at 0 (ReLU).
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: ReBLU of arXiv 2110.05626 (`pblu` in the authors' code), after the bent identity.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        return formulas.reblu(wide, align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return apply('reblu', x, alpha, None, channel_dim)


def pssilu(x: Tensor, alpha: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSSiLU: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|).

    Args:
        x: Floating-point tensor of any shape.
        alpha: Sharpness, |alpha| <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1.
        beta: Shift that makes outputs positive on negative inputs, |beta| <= `BETA_MAX`; as alpha. The published
            models start it at 1e-8.
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: PSSiLU of arXiv 2110.05626 (`pssilu2` in the authors' code).
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        a = formulas.sharpness(align(alpha, wide, channel_dim))
        b = formulas.shift(align(beta, wide, channel_dim))
        return formulas.pssilu(wide, a, b).to(x.dtype)
    else:
        return apply('pssilu', x, alpha, beta, channel_dim)


def pssilu_fixed(x: Tensor, alpha: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""PSSiLU with a constant shift: x (sigmoid(alpha^2 x) - |beta|) / (1 - |beta|).

    Args:
        x: Floating-point tensor of any shape.
        alpha: Root of the sharpness, alpha^2 <= `ALPHA_MAX`; a number, (), (1,) or (C,). The paper starts it at 1.
        beta: Shift, |beta| <= `BETA_MAX`; as alpha. The paper holds it at 0.3.
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: `pssilu` in the authors' code of arXiv 2110.05626.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        a = formulas.squared_sharpness(align(alpha, wide, channel_dim))
        b = formulas.shift(align(beta, wide, channel_dim))
        return formulas.pssilu(wide, a, b).to(x.dtype)
    else:
        return apply('pssilu_fixed', x, alpha, beta, channel_dim)


def ssilu(x: Tensor, beta: Tensor, channel_dim: int = 1) -> Tensor:
    r"""SSiLU, the shifted SiLU: x (sigmoid(x) - |beta|) / (1 - |beta|).

    Args:
        x: Floating-point tensor of any shape.
        beta: Shift, |beta| <= `BETA_MAX`; a number, (), (1,) or (C,). The paper holds it at 0.3.
        channel_dim: Dimension of x that a (C,) parameter runs along.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: As `prelu0`.

    Source: SSiLU of arXiv 2110.05626; PSSiLU at alpha = 1.
    """
    if torch.jit.is_scripting():
        wide = widen(x)
        b = formulas.shift(align(beta, wide, channel_dim))
        return formulas.pssilu(wide, torch.ones_like(b), b).to(x.dtype)
    else:
        return apply('pssilu', x, 1., beta, channel_dim)
