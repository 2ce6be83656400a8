"""Evaluation and differentiation of the formulas: one autograd function for all, which saves only x and parameters."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype

__all__ = [
    'FORMULAS', 'Formula', 'ForwardModeActivation', 'TracedActivation', 'absolute', 'align', 'evaluate',
    'gradients', 'widen',
]

Transform = Callable[[Tensor], tuple[Tensor, Tensor]]


def identity(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter that enters the formula as it is, and the derivative 1."""
    return parameter, torch.ones_like(parameter)


def absolute(bounded: Callable[[Tensor], Tensor]) -> Transform:
    """A parameter that enters as its absolute value, limited by `bounded`, and its sign (+1 at 0)."""
    def transform(parameter: Tensor) -> tuple[Tensor, Tensor]:
        sign = torch.where(parameter < 0, -torch.ones_like(parameter), torch.ones_like(parameter))
        return bounded(parameter), sign
    return transform


class Formula(NamedTuple):
    """One activation for autograd."""
    value: Callable[..., Tensor]  # f(x, a) or f(x, a, b)
    # (x, a, b, need_params) -> df/dx, df/da, df/db; the last two may be None if not need_params
    partials: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
    alpha: Transform = identity  # alpha -> a, da/dalpha
    beta: Transform | None = None  # beta -> b, db/dbeta; None for an activation without beta


FORMULAS: dict[str, Formula] = {}  # by name; `functional` adds one for each activation


def widen(x: Tensor) -> Tensor:
    """Convert x to the dtype of the computation."""
    return x.to(compute_dtype(x.dtype))


def align(parameter: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Convert a parameter to the dtype of the computation and x's device, in a shape that broadcasts against x."""
    parameter = parameter.to(device=x.device, dtype=compute_dtype(x.dtype))
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[channel_dim] = parameter.numel()
    return parameter.reshape(shape)


def _reduce_like(gradient: Tensor, parameter: Tensor, channel_dim: int) -> Tensor:
    """Sum an elementwise gradient over all elements that share the parameter, in the gradient's dtype."""
    if parameter.numel() == 1:
        gradient = gradient.sum()
    else:
        channel_dim = channel_dim % gradient.dim()
        others = [dim for dim in range(gradient.dim()) if dim != channel_dim]
        gradient = gradient.sum(dim=others) if others else gradient
    return gradient.reshape(parameter.shape)


def evaluate(name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
    """Compute the value in x's dtype with torch's own operations."""
    activation = FORMULAS[name]
    wide = widen(x)
    constants = [activation.alpha(align(alpha, wide, channel_dim))[0]]
    if activation.beta is not None:
        assert beta is not None
        constants.append(activation.beta(align(beta, wide, channel_dim))[0])
    return activation.value(wide, *constants).to(x.dtype)


class _Slopes(NamedTuple):
    """Elementwise df/dx, df/da, df/db in the computation's dtype, and da/dalpha, db/dbeta."""
    x: Tensor
    a: Tensor | None
    b: Tensor | None
    alpha: Tensor
    beta: Tensor | None


def _differentiate(
        name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int, need_params: bool) -> _Slopes:
    activation = FORMULAS[name]
    wide = widen(x)
    a, a_slope = activation.alpha(align(alpha, wide, channel_dim))
    b, b_slope = None, None
    if activation.beta is not None:
        assert beta is not None
        b, b_slope = activation.beta(align(beta, wide, channel_dim))
    return _Slopes(*activation.partials(wide, a, b, need_params), a_slope, b_slope)


def gradients(ctx: Any, grad_output: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Compute the gradients in x, alpha and beta that are needed, with differentiable operations."""
    x, alpha, beta = ctx.saved_tensors
    need_x, need_alpha, need_beta = needs
    slopes = _differentiate(ctx.name, x, alpha, beta, ctx.channel_dim, need_alpha or need_beta)
    grad = widen(grad_output)

    def grad_of(parameter: Tensor, partial: Tensor | None, inner: Tensor | None) -> Tensor:
        assert partial is not None and inner is not None
        total = _reduce_like(grad * partial, parameter, ctx.channel_dim) * inner.reshape(parameter.shape)
        return total.to(device=parameter.device, dtype=parameter.dtype)

    return (
        (grad * slopes.x).to(x.dtype) if need_x else None,
        grad_of(alpha, slopes.a, slopes.alpha) if need_alpha else None,
        grad_of(beta, slopes.b, slopes.beta) if need_beta else None)


class TracedActivation(torch.autograd.Function):
    """Autograd function that saves only x and the parameters; its backward pass can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int) -> Tensor:
        return evaluate(name, x, alpha, beta, channel_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, alpha, beta, ctx.name, ctx.channel_dim = inputs
        ctx.save_for_backward(x, alpha, beta)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad_output, ctx.needs_input_grad[:3]), None, None


class ForwardModeActivation(TracedActivation):
    """`TracedActivation` with forward-mode differentiation, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        TracedActivation.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])
        ctx.set_materialize_grads(False)  # a tangent of zeros times an infinite slope would be NaN

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * 5 if grad_output is None else TracedActivation.backward(ctx, grad_output)

    @staticmethod
    def jvp(
            ctx: Any, x_tangent: Tensor | None, alpha_tangent: Tensor | None, beta_tangent: Tensor | None, *_: Any,
    ) -> Tensor:
        x, alpha, beta = ctx.saved_tensors
        need_params = alpha_tangent is not None or beta_tangent is not None
        slopes = _differentiate(ctx.name, x, alpha, beta, ctx.channel_dim, need_params)
        tangent = torch.zeros_like(slopes.x)
        if x_tangent is not None:
            tangent = tangent + widen(x_tangent) * slopes.x
        for inner, partial, change in (
                (slopes.alpha, slopes.a, alpha_tangent), (slopes.beta, slopes.b, beta_tangent)):
            if change is not None and partial is not None and inner is not None:
                tangent = tangent + partial * (inner * align(change, slopes.x, ctx.channel_dim))
        return tangent.to(x.dtype)
