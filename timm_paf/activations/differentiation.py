"""How the formulas are evaluated and differentiated: one autograd function for all of them, that keeps x alone."""
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from timm_paf.activations import formulas
from timm_paf.activations.formulas import ALPHA_MAX

__all__ = ['ForwardModeActivation', 'TracedActivation', 'align', 'evaluate', 'gradients', 'widen']

def _identity(parameter: Tensor) -> tuple[Tensor, Tensor]:
    return parameter, torch.ones_like(parameter)


def _absolute(bounded: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def transform(parameter: Tensor) -> tuple[Tensor, Tensor]:
        sign = torch.where(parameter < 0, -torch.ones_like(parameter), torch.ones_like(parameter))
        return bounded(parameter), sign
    return transform


def _square(parameter: Tensor) -> tuple[Tensor, Tensor]:
    edge = math.sqrt(ALPHA_MAX)
    return formulas.squared_sharpness(parameter), 2 * parameter.clamp(-edge, edge)


class _Activation(NamedTuple):
    """value(x, a[, b]), its partials, and how the parameters enter: p -> (number in the formula, its derivative)."""
    value: Callable[..., Tensor]
    partials: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
    alpha: Callable[[Tensor], tuple[Tensor, Tensor]] = _identity
    beta: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


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


def widen(x: Tensor) -> Tensor:
    """X in the dtype that the formulas are computed in."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def align(parameter: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """The parameter in x's dtype and device, shaped to broadcast against x."""
    parameter = parameter.to(device=x.device, dtype=x.dtype)
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[channel_dim] = parameter.numel()
    return parameter.reshape(shape)


def _reduce_like(gradient: Tensor, parameter: Tensor, channel_dim: int) -> Tensor:
    """Sum an elementwise gradient over everything that the parameter is shared by, in the gradient's dtype."""
    if parameter.numel() == 1:
        gradient = gradient.sum()
    else:
        channel_dim = channel_dim % gradient.dim()
        others = [dim for dim in range(gradient.dim()) if dim != channel_dim]
        gradient = gradient.sum(dim=others) if others else gradient
    return gradient.reshape(parameter.shape)


def evaluate(name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
    """The value in x's dtype, made of torch's own operations."""
    activation = _ACTIVATIONS[name]
    wide = widen(x)
    constants = [activation.alpha(align(alpha, wide, channel_dim))[0]]
    if activation.beta is not None:
        constants.append(activation.beta(align(beta, wide, channel_dim))[0])
    return activation.value(wide, *constants).to(x.dtype)


class _Slopes(NamedTuple):
    """Elementwise df/dx, df/da, df/db in the computation's dtype, and da/dalpha, db/dbeta beside them."""
    x: Tensor
    a: Tensor | None
    b: Tensor | None
    alpha: Tensor
    beta: Tensor | None


def _differentiate(
        name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int, need_params: bool) -> _Slopes:
    activation = _ACTIVATIONS[name]
    wide = widen(x)
    a, a_slope = activation.alpha(align(alpha, wide, channel_dim))
    b, b_slope = None, None
    if activation.beta is not None:
        b, b_slope = activation.beta(align(beta, wide, channel_dim))
    return _Slopes(*activation.partials(wide, a, b, need_params), a_slope, b_slope)


def gradients(ctx, grad_output: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients in x, alpha and beta that are needed, made of differentiable operations."""
    x, alpha, beta = ctx.saved_tensors
    need_x, need_alpha, need_beta = needs
    slopes = _differentiate(ctx.name, x, alpha, beta, ctx.channel_dim, need_alpha or need_beta)
    grad = widen(grad_output)

    def grad_of(parameter: Tensor, partial: Tensor, inner: Tensor) -> Tensor:
        total = _reduce_like(grad * partial, parameter, ctx.channel_dim) * inner.reshape(parameter.shape)
        return total.to(device=parameter.device, dtype=parameter.dtype)

    return (
        (grad * slopes.x).to(x.dtype) if need_x else None,
        grad_of(alpha, slopes.a, slopes.alpha) if need_alpha else None,
        grad_of(beta, slopes.b, slopes.beta) if need_beta else None)


class TracedActivation(torch.autograd.Function):
    """Keeps x and the parameters, nothing else; backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int) -> Tensor:
        return evaluate(name, x, alpha, beta, channel_dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, alpha, beta, ctx.name, ctx.channel_dim = inputs
        ctx.save_for_backward(x, alpha, beta)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return *gradients(ctx, grad_output, ctx.needs_input_grad[:3]), None, None


class ForwardModeActivation(TracedActivation):
    """The same with forward-mode differentiation, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        TracedActivation.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx, x_tangent, alpha_tangent, beta_tangent, *_):
        x, alpha, beta = ctx.saved_tensors
        need_params = alpha_tangent is not None or beta_tangent is not None
        slopes = _differentiate(ctx.name, x, alpha, beta, ctx.channel_dim, need_params)
        tangent = torch.zeros_like(slopes.x)
        if x_tangent is not None:
            tangent = tangent + widen(x_tangent) * slopes.x
        for inner, partial, change in (
                (slopes.alpha, slopes.a, alpha_tangent), (slopes.beta, slopes.b, beta_tangent)):
            if change is not None and partial is not None:
                tangent = tangent + partial * (inner * align(change, slopes.x, ctx.channel_dim))
        return tangent.to(x.dtype)
