"""Evaluation of an activation by name: check its arguments, choose the implementation."""
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._functorch import eager_transforms  # the only place with the nesting depth of forward mode

from timm_paf._dtypes import compute_dtype
from timm_paf.activations.differentiation import (
    ForwardModeActivation,
    TracedActivation,
    evaluate,
    gradients,
)

__all__ = ['Kernels', 'Number', 'apply', 'install_kernels']

Number = float | Tensor

_OLD_COMPILER = torch.__version__.startswith('2.6')  # it does not trace a custom Function inside torch.func


class Kernels(Protocol):
    """Another implementation of value and gradients; results differ only by rounding."""

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
        """Compute the value, as in `functional`."""

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute the gradient in x and, if `need_params`, those in alpha and beta in the dtype of the computation."""


def _no_kernels(name: str, x: Tensor, *others: Tensor | None) -> Kernels | None:
    return None


_choose_kernels: Callable[..., Kernels | None] = _no_kernels


def install_kernels(choose: Callable[..., Kernels | None]) -> None:
    """Install another implementation.

    Args:
        choose: Called before every eager value and gradient with the activation's name, x and the other tensors.
            Returns the implementation to use, or None for torch's operations. Must return None inside transforms of
            torch.func.
    """
    global _choose_kernels
    _choose_kernels = choose


def _asked_for(ctx: Any) -> list[bool]:
    """Gradients that this backward pass needs; `needs_input_grad` says only which could be needed.

    An attack needs only the gradient in x, although alpha and beta are parameters. Works on results of `_inner`.
    """
    needs = list(ctx.needs_input_grad[:3])
    for index in (1, 2):
        if needs[index]:
            with suppress(RuntimeError):  # not called by the engine
                needs[index] = torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    return needs


def _inner(parameter: Tensor | None) -> Tensor | None:
    """Make a leaf parameter the result of an operation: for a leaf, torch cannot say if its gradient is needed."""
    if parameter is None or not (parameter.requires_grad and parameter.is_leaf):
        return parameter
    return parameter.view_as(parameter)


class _FusedActivation(torch.autograd.Function):
    """Autograd function for installed kernels, as fast to call as possible; not for forward mode and torch.func."""

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int, kernels: Kernels,
    ) -> Tensor:
        ctx.name, ctx.channel_dim = name, channel_dim
        ctx.save_for_backward(x, alpha, beta)
        return kernels.value(name, x, alpha, beta, channel_dim)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, beta = ctx.saved_tensors
        needs = _asked_for(ctx)
        # a gradient that will be differentiated again needs differentiable operations
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


def _parameter(parameter: Number, label: str, name: str, x: Tensor, channel_dim: int) -> Tensor:
    """Convert a parameter to a tensor and check that it fits x."""
    if not isinstance(parameter, Tensor):
        try:  # created on x's device: a copy would wait for the device
            dtype = compute_dtype(x.dtype)
            parameter = (
                torch.full((), parameter, dtype=dtype, device=x.device) if isinstance(parameter, (int, float))
                else torch.as_tensor(parameter, dtype=dtype))
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
            f'{name}: {label} has shape {tuple(parameter.shape)}; expected (), (1,) or (C,), where x has C channels.')
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
    """Evaluate an activation by name; arguments and errors are those of `functional`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f'a {x.dtype} tensor' if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f'{name}: x is {what}; expected a floating-point tensor (convert it with x.float()).')
    if torch.jit.is_tracing():  # a custom Function would be traced as an opaque Python operator
        with warnings.catch_warnings():
            # the number of values of a parameter is a constant of the trace, on purpose
            warnings.simplefilter('ignore', torch.jit.TracerWarning)
            return evaluate(name, x, *_parameters(name, x, alpha, beta, channel_dim), channel_dim)
    alpha, beta = _parameters(name, x, alpha, beta, channel_dim)
    if eager_transforms.JVP_NESTING > 1:  # forward mode over forward mode does not see into a custom Function
        return evaluate(name, x, alpha, beta, channel_dim)
    if torch.compiler.is_compiling():  # the compiler fuses torch's operations with their neighbours
        if _OLD_COMPILER and _inside_torch_func():
            return evaluate(name, x, alpha, beta, channel_dim)
        return TracedActivation.apply(x, alpha, beta, name, channel_dim)
    kernels = _choose_kernels(name, x, alpha, beta)
    if kernels is None:
        return ForwardModeActivation.apply(x, alpha, beta, name, channel_dim)
    if not torch.is_grad_enabled():
        return kernels.value(name, x, alpha, beta, channel_dim)
    return _FusedActivation.apply(x, _inner(alpha), _inner(beta), name, channel_dim, kernels)
