"""How the formulas are evaluated and differentiated: one autograd function for all of them, that keeps x alone."""
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Optional, Protocol, Union

import torch
from torch import Tensor
from torch._functorch import eager_transforms  # torch says nowhere else how deep forward mode is nested

from . import formulas
from .formulas import ALPHA_MAX

__all__ = ['Kernels', 'Number', 'align', 'apply', 'install_kernels', 'widen']

Number = Union[float, Tensor]


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


def widen(x: Tensor) -> Tensor:
    """x in the dtype that the formulas are computed in."""
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


def _evaluate(name: str, x: Tensor, alpha: Tensor, beta: Optional[Tensor], channel_dim: int) -> Tensor:
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
    a: Optional[Tensor]
    b: Optional[Tensor]
    alpha: Tensor
    beta: Optional[Tensor]


def _differentiate(
        name: str, x: Tensor, alpha: Tensor, beta: Optional[Tensor], channel_dim: int, need_params: bool) -> _Slopes:
    activation = _ACTIVATIONS[name]
    wide = widen(x)
    a, a_slope = activation.alpha(align(alpha, wide, channel_dim))
    b, b_slope = None, None
    if activation.beta is not None:
        b, b_slope = activation.beta(align(beta, wide, channel_dim))
    return _Slopes(*activation.partials(wide, a, b, need_params), a_slope, b_slope)


class Kernels(Protocol):
    """Another implementation of value and gradients, with results that differ by rounding alone."""

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Optional[Tensor], channel_dim: int) -> Tensor:
        """The value, as `functional` has it."""

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Optional[Tensor], channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """The gradient in x and, if asked for, those in alpha and beta in the dtype of the computation."""


def _no_kernels(name: str, x: Tensor, *others: Optional[Tensor]) -> Optional[Kernels]:
    return None


_choose_kernels: Callable[..., Optional[Kernels]] = _no_kernels


def install_kernels(choose: Callable[..., Optional[Kernels]]) -> None:
    """Have another implementation used where it can be.

    Args:
        choose: Called with the name of the activation, x and the other tensors before every eager value and gradient;
            returns what is to compute it, or None for the operations of torch that stand here. It has to return None
            inside torch.func's transforms.
    """
    global _choose_kernels
    _choose_kernels = choose


def _gradients(ctx, grad_output: Tensor, needs: Sequence[bool]) -> tuple[Optional[Tensor], ...]:
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


class _ParametricActivation(torch.autograd.Function):
    """Keeps x and the parameters, nothing else; backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, beta: Optional[Tensor], name: str, channel_dim: int) -> Tensor:
        return _evaluate(name, x, alpha, beta, channel_dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, alpha, beta, ctx.name, ctx.channel_dim = inputs
        ctx.save_for_backward(x, alpha, beta)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return *_gradients(ctx, grad_output, ctx.needs_input_grad[:3]), None, None


class _ForwardModeActivation(_ParametricActivation):
    """The same with forward-mode differentiation, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _ParametricActivation.setup_context(ctx, inputs, output)
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


def _asked_for(ctx) -> list[bool]:
    """Which gradients this backward pass wants, where `needs_input_grad` says which could be wanted.

    An attack wants that in x alone, while alpha and beta are parameters. Needs inputs that `_inner` has gone over.
    """
    needs = list(ctx.needs_input_grad[:3])
    for index in (1, 2):
        if needs[index]:
            with suppress(RuntimeError):  # not called by the engine
                needs[index] = torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    return needs


def _inner(parameter: Optional[Tensor]) -> Optional[Tensor]:
    """The parameter as the result of an operation: torch does not say of a leaf whether its gradient is wanted."""
    if parameter is None or not (parameter.requires_grad and parameter.is_leaf):
        return parameter
    return parameter.view_as(parameter)


class _FusedActivation(torch.autograd.Function):
    """The same by other kernels, in the form of a Function that is called fastest; not for torch.func."""

    @staticmethod
    def forward(ctx, x, alpha, beta, name, channel_dim, kernels) -> Tensor:
        ctx.name, ctx.channel_dim = name, channel_dim
        ctx.save_for_backward(x, alpha, beta)
        ctx.save_for_forward(x, alpha, beta)
        return kernels.value(name, x, alpha, beta, channel_dim)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, alpha, beta = ctx.saved_tensors
        needs = _asked_for(ctx)
        # a gradient that will be differentiated is made of differentiable operations
        kernels = None if torch.is_grad_enabled() else _choose_kernels(ctx.name, x, alpha, beta, grad_output)
        if kernels is None:
            return *_gradients(ctx, grad_output, needs), None, None, None
        grad_x, grad_alpha, grad_beta = kernels.gradients(
            ctx.name, grad_output, x, alpha, beta, ctx.channel_dim, needs[1] or needs[2])
        return (
            grad_x if needs[0] else None,
            grad_alpha.to(alpha.dtype) if needs[1] else None,
            grad_beta.to(beta.dtype) if needs[2] else None,
            None, None, None)

    @staticmethod
    def jvp(ctx, *tangents):
        return _ForwardModeActivation.jvp(ctx, *tangents)


def _parameter(parameter: Number, label: str, name: str, x: Tensor, channel_dim: int) -> Tensor:
    """The parameter as a tensor that fits x."""
    if isinstance(parameter, (int, float)):  # made where x is: bringing it there would wait for the device
        parameter = torch.full((), parameter, dtype=widen(x).dtype, device=x.device)
    elif not isinstance(parameter, Tensor):
        try:
            parameter = torch.as_tensor(parameter, dtype=widen(x).dtype)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f'{name}: {label} is {type(parameter).__name__} {parameter!r}; expected a real number or a tensor.'
            ) from None
    if not parameter.is_floating_point():
        raise TypeError(
            f'{name}: {label} is a {parameter.dtype} tensor; expected a floating-point tensor or a number '
            f'(convert it with {label}.float()).')
    if parameter.numel() == 1:
        return parameter
    if parameter.dim() != 1:
        raise ValueError(
            f'{name}: {label} has shape {tuple(parameter.shape)}; expected (), (1,) or (C,) with C the channels of x.')
    if not -x.dim() <= channel_dim < x.dim() or x.shape[channel_dim] != parameter.numel():
        raise ValueError(
            f'{name}: {label} holds {parameter.numel()} values, but x of shape {tuple(x.shape)} does not have '
            f'{parameter.numel()} channels along dimension {channel_dim}; pass one value, or one per channel.')
    return parameter


def _parameters(
        name: str, x: Tensor, alpha: Number, beta: Optional[Number], channel_dim: int,
) -> tuple[Tensor, Optional[Tensor]]:
    return (
        _parameter(alpha, 'alpha', name, x, channel_dim),
        None if beta is None else _parameter(beta, 'beta', name, x, channel_dim))


def apply(name: str, x: Tensor, alpha: Number, beta: Optional[Number], channel_dim: int) -> Tensor:
    """An activation by name, with everything checked; arguments and errors as in `functional`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f'a {x.dtype} tensor' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name}: x is {what}; expected a floating-point tensor (convert it with x.float()).')
    if torch.jit.is_tracing():  # a traced custom Function would be an opaque Python operator
        with warnings.catch_warnings():
            # how many values a parameter holds is a constant of the trace, and is meant to be
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            return _evaluate(name, x, *_parameters(name, x, alpha, beta, channel_dim), channel_dim)
    alpha, beta = _parameters(name, x, alpha, beta, channel_dim)
    if eager_transforms.JVP_NESTING > 1:  # forward mode over forward mode does not see into a custom Function
        return _evaluate(name, x, alpha, beta, channel_dim)
    if torch.compiler.is_compiling():  # a compiler fuses torch's operations with their neighbours
        return _ParametricActivation.apply(x, alpha, beta, name, channel_dim)
    kernels = _choose_kernels(name, x, alpha, beta)
    if kernels is not None:
        return _FusedActivation.apply(x, _inner(alpha), _inner(beta), name, channel_dim, kernels)
    return _ForwardModeActivation.apply(x, alpha, beta, name, channel_dim)
