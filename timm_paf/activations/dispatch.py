"""An activation by name: its arguments checked, and the implementation of it chosen."""
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor
from torch._functorch import eager_transforms  # torch says nowhere else how deep forward mode is nested

from timm_paf.activations.differentiation import ForwardModeActivation, TracedActivation, evaluate, gradients, widen
from timm_paf.activations.recomputation import keeping

__all__ = ['Kernels', 'Number', 'apply', 'install_kernels']

Number = float | Tensor

_OLD_COMPILER = torch.__version__.startswith('2.6')  # it does not trace a custom Function inside torch.func


class Kernels(Protocol):
    """Another implementation of value and gradients, with results that differ by rounding alone."""

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
        """The value, as `functional` has it."""

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient in x and, if asked for, those in alpha and beta in the dtype of the computation."""


def _no_kernels(name: str, x: Tensor, *others: Tensor | None) -> Kernels | None:
    return None


_choose_kernels: Callable[..., Kernels | None] = _no_kernels


def install_kernels(choose: Callable[..., Kernels | None]) -> None:
    """Have another implementation used where it can be.

    Args:
        choose: Called with the name of the activation, x and the other tensors before every eager value and gradient;
            returns what is to compute it, or None for the operations of torch that stand here. It has to return None
            inside torch.func's transforms.
    """
    global _choose_kernels
    _choose_kernels = choose


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


def _inner(parameter: Tensor | None) -> Tensor | None:
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
            return *gradients(ctx, grad_output, needs), None, None, None
        grad_x, grad_alpha, grad_beta = kernels.gradients(
            ctx.name, grad_output, x, alpha, beta, ctx.channel_dim, needs[1] or needs[2])
        return (
            grad_x if needs[0] else None,
            grad_alpha.to(alpha.dtype) if needs[1] and grad_alpha is not None else None,
            grad_beta.to(beta.dtype) if needs[2] and grad_beta is not None else None,
            None, None, None)

    @staticmethod
    def jvp(ctx, *tangents):
        return ForwardModeActivation.jvp(ctx, *tangents)


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
        name: str, x: Tensor, alpha: Number, beta: Number | None, channel_dim: int,
) -> tuple[Tensor, Tensor | None]:
    return (
        _parameter(alpha, 'alpha', name, x, channel_dim),
        None if beta is None else _parameter(beta, 'beta', name, x, channel_dim))


@torch.compiler.assume_constant_result
def _inside_torch_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def apply(name: str, x: Tensor, alpha: Number, beta: Number | None, channel_dim: int) -> Tensor:
    """An activation by name, with everything checked; arguments and errors as in `functional`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f'a {x.dtype} tensor' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name}: x is {what}; expected a floating-point tensor (convert it with x.float()).')
    if torch.jit.is_tracing():  # a traced custom Function would be an opaque Python operator
        with warnings.catch_warnings():
            # how many values a parameter holds is a constant of the trace, and is meant to be
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            return evaluate(name, x, *_parameters(name, x, alpha, beta, channel_dim), channel_dim)
    alpha, beta = _parameters(name, x, alpha, beta, channel_dim)
    if eager_transforms.JVP_NESTING > 1:  # forward mode over forward mode does not see into a custom Function
        return evaluate(name, x, alpha, beta, channel_dim)
    if torch.compiler.is_compiling():  # a compiler fuses torch's operations with their neighbours
        if _OLD_COMPILER and _inside_torch_func():
            return evaluate(name, x, alpha, beta, channel_dim)
        return TracedActivation.apply(x, alpha, beta, name, channel_dim)
    kernels = _choose_kernels(name, x, alpha, beta)
    with keeping(x):
        if kernels is not None:
            return _FusedActivation.apply(x, _inner(alpha), _inner(beta), name, channel_dim, kernels)
        return ForwardModeActivation.apply(x, alpha, beta, name, channel_dim)
