"""Parametric activation functions f(x, alpha, beta): the definitions that everything else here is tested against.

Every function takes a floating-point tensor of any shape and returns one of the same shape, dtype, device and layout.
Half-precision inputs are computed in float32 and rounded once. alpha and beta are numbers or tensors of shape (), (1,)
or, for one value per channel along `channel_dim`, (C,); their dtype and device need not be x's. Each is differentiable
twice in x, alpha and beta, and keeps x alone for the backward pass.

Where a formula uses |alpha| or |beta| it holds them inside the range named in its docstring, so that neither the value
nor a gradient is infinite at the edge. Outside the range the gradient is the one at the edge, so that training can walk
back in; the derivative of |p| at p = 0 is taken as +1 for the same reason.

Source: Dai, Mahloujifar and Mittal, "Parameterizing Activation Functions for Adversarial Robustness", arXiv 2110.05626.
"""
from collections.abc import Callable
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from . import formulas
from .formulas import ALPHA_MAX, BETA_MAX, PSOFTPLUS_ALPHA_MIN

__all__ = [
    'prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'ssilu', 'pssilu_fixed', 'pssilu',
    'ALPHA_MAX', 'PSOFTPLUS_ALPHA_MIN', 'BETA_MAX',
]


Number = Union[float, Tensor]


def _identity(parameter: Tensor) -> tuple[Tensor, Tensor]:
    return parameter, torch.ones_like(parameter)


def _absolute(magnitude: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def transform(parameter: Tensor) -> tuple[Tensor, Tensor]:
        sign = torch.where(parameter < 0, -torch.ones_like(parameter), torch.ones_like(parameter))
        return magnitude(parameter), sign
    return transform


def _square(parameter: Tensor) -> tuple[Tensor, Tensor]:
    return formulas.squared_sharpness(parameter), 2 * parameter


class _Activation(NamedTuple):
    """value(x, a[, b]), its partials, and how the parameters enter: p -> (number in the formula, its derivative)."""
    value: Callable[..., Tensor]
    partials: Callable[..., tuple[Tensor, Optional[Tensor], Optional[Tensor]]]
    alpha: Callable[[Tensor], tuple[Tensor, Tensor]] = _identity
    beta: Optional[Callable[[Tensor], tuple[Tensor, Tensor]]] = None


_ACTIVATIONS = {
    'prelu0': _Activation(formulas.prelu0, formulas.prelu0_partials),
    'preluplus': _Activation(formulas.preluplus, formulas.preluplus_partials),
    'pelu': _Activation(formulas.pelu, formulas.pelu_partials),
    'peluplus': _Activation(formulas.peluplus, formulas.peluplus_partials),
    'psilu': _Activation(formulas.psilu, formulas.psilu_partials, _absolute(formulas.sharpness)),
    'psoftplus': _Activation(
        formulas.psoftplus, formulas.psoftplus_partials, _absolute(formulas.softplus_sharpness)),
    'reblu': _Activation(formulas.reblu, formulas.reblu_partials),
    'pssilu_fixed': _Activation(formulas.pssilu, formulas.pssilu_partials, _square, _absolute(formulas.shift)),
    'pssilu': _Activation(
        formulas.pssilu, formulas.pssilu_partials, _absolute(formulas.sharpness), _absolute(formulas.shift)),
}


def _widen(x: Tensor) -> Tensor:
    """x in the dtype that the formulas are computed in."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _align(parameter: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """The parameter in x's dtype and device, shaped to broadcast against x."""
    parameter = parameter.to(device=x.device, dtype=x.dtype)
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[channel_dim] = parameter.numel()
    return parameter.reshape(shape)


def _reduce_like(gradient: Tensor, parameter: Tensor, channel_dim: int) -> Tensor:
    """Sum an elementwise gradient over everything that the parameter is shared by."""
    if parameter.numel() == 1:
        gradient = gradient.sum()
    else:
        channel_dim = channel_dim % gradient.dim()
        others = [dim for dim in range(gradient.dim()) if dim != channel_dim]
        gradient = gradient.sum(dim=others) if others else gradient
    return gradient.reshape(parameter.shape).to(device=parameter.device, dtype=parameter.dtype)


class _ParametricActivation(torch.autograd.Function):
    """Keeps x and the parameters, nothing else; backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Optional[Tensor], name: str, channel_dim: int) -> Tensor:
        activation = _ACTIVATIONS[name]
        wide = _widen(x)
        constants = [activation.alpha(_align(alpha, wide, channel_dim))[0]]
        if activation.beta is not None:
            constants.append(activation.beta(_align(beta, wide, channel_dim))[0])
        return activation.value(wide, *constants).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, alpha, beta, ctx.name, ctx.channel_dim = inputs
        ctx.save_for_backward(x, alpha, beta)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, alpha, beta = ctx.saved_tensors
        activation = _ACTIVATIONS[ctx.name]
        wide, grad = _widen(x), _widen(grad_output)
        a, a_slope = activation.alpha(_align(alpha, wide, ctx.channel_dim))
        b, b_slope = None, None
        if activation.beta is not None:
            b, b_slope = activation.beta(_align(beta, wide, ctx.channel_dim))
        need_x, need_alpha, need_beta = ctx.needs_input_grad[:3]
        dx, da, db = activation.partials(wide, a, b, need_alpha or need_beta)
        grad_x = (grad * dx).to(x.dtype) if need_x else None
        grad_alpha = _reduce_like(grad * da * a_slope, alpha, ctx.channel_dim) if need_alpha else None
        grad_beta = _reduce_like(grad * db * b_slope, beta, ctx.channel_dim) if need_beta else None
        return grad_x, grad_alpha, grad_beta, None, None


def _check(x: Tensor, parameter: Tensor, label: str, name: str, channel_dim: int) -> None:
    if parameter.numel() == 1:
        return
    if parameter.dim() != 1:
        raise ValueError(
            f'{name}: {label} has shape {tuple(parameter.shape)}; expected (), (1,) or (C,) with C the channels of x.')
    if not -x.dim() <= channel_dim < x.dim() or x.shape[channel_dim] != parameter.numel():
        raise ValueError(
            f'{name}: {label} holds {parameter.numel()} values, but x of shape {tuple(x.shape)} does not have '
            f'{parameter.numel()} channels along dimension {channel_dim}; pass one value, or one per channel.')


def _apply(name: str, x: Tensor, alpha: Number, beta: Optional[Number], channel_dim: int) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f'a {x.dtype} tensor' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name}: x is {what}; expected a floating-point tensor (convert it with x.float()).')
    alpha = torch.as_tensor(alpha, dtype=None if isinstance(alpha, Tensor) else _widen(x).dtype)
    _check(x, alpha, 'alpha', name, channel_dim)
    if beta is not None:
        beta = torch.as_tensor(beta, dtype=None if isinstance(beta, Tensor) else _widen(x).dtype)
        _check(x, beta, 'beta', name, channel_dim)
    if torch.jit.is_tracing():  # a traced custom Function would be an opaque Python operator
        activation = _ACTIVATIONS[name]
        wide = _widen(x)
        constants = [activation.alpha(_align(alpha, wide, channel_dim))[0]]
        if activation.beta is not None:
            constants.append(activation.beta(_align(beta, wide, channel_dim))[0])
        return activation.value(wide, *constants).to(x.dtype)
    return _ParametricActivation.apply(x, alpha, beta, name, channel_dim)


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
        wide = _widen(x)
        return formulas.prelu0(wide, _align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return _apply('prelu0', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        return formulas.preluplus(wide, _align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return _apply('preluplus', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        return formulas.pelu(wide, _align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return _apply('pelu', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        return formulas.peluplus(wide, _align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return _apply('peluplus', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        a = formulas.sharpness(_align(alpha, wide, channel_dim))
        return formulas.psilu(wide, a).to(x.dtype)
    else:
        return _apply('psilu', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        a = formulas.softplus_sharpness(_align(alpha, wide, channel_dim))
        return formulas.psoftplus(wide, a).to(x.dtype)
    else:
        return _apply('psoftplus', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        return formulas.reblu(wide, _align(alpha, wide, channel_dim)).to(x.dtype)
    else:
        return _apply('reblu', x, alpha, None, channel_dim)


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
        wide = _widen(x)
        a = formulas.sharpness(_align(alpha, wide, channel_dim))
        b = formulas.shift(_align(beta, wide, channel_dim))
        return formulas.pssilu(wide, a, b).to(x.dtype)
    else:
        return _apply('pssilu', x, alpha, beta, channel_dim)


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
        wide = _widen(x)
        a = formulas.squared_sharpness(_align(alpha, wide, channel_dim))
        b = formulas.shift(_align(beta, wide, channel_dim))
        return formulas.pssilu(wide, a, b).to(x.dtype)
    else:
        return _apply('pssilu_fixed', x, alpha, beta, channel_dim)


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
        wide = _widen(x)
        b = formulas.shift(_align(beta, wide, channel_dim))
        return formulas.pssilu(wide, torch.ones_like(b), b).to(x.dtype)
    else:
        return _apply('pssilu', x, 1., beta, channel_dim)
