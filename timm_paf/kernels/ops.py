"""The fused functions as operators of torch, for profilers, dispatch modes and fake tensors."""
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf.kernels import cpu

__all__ = ['CPU', 'Operators']

_TENSORS = 'Tensor x, Tensor alpha, Tensor? beta, str name, int channel_dim'
_library = torch.library.Library('timm_paf', 'DEF')


def _define(name: str, schema: str, function: Callable, fake: Callable) -> None:
    _library.define(f'{name}{schema}')
    _library.impl(name, function, 'CPU')
    torch.library.register_fake(f'timm_paf::{name}', fake, lib=_library)


def _like_x(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _like_second(grad: Tensor, x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _fake_gradients(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x.dtype)
    return (
        torch.empty_like(x), torch.empty(alpha.shape, dtype=dtype, device=x.device),
        torch.empty((0,) if beta is None else beta.shape, dtype=dtype, device=x.device))


_define('value', f'({_TENSORS}) -> Tensor', cpu.value, _like_x)
_define('input_gradient', f'(Tensor grad, {_TENSORS}) -> Tensor', cpu.input_gradient, _like_second)
_define('gradients', f'(Tensor grad, {_TENSORS}) -> (Tensor, Tensor, Tensor)', cpu.gradients, _fake_gradients)


class Operators:
    """Three operators with the signatures of `cpu.value`, `cpu.input_gradient` and `cpu.gradients`.

    Args:
        value: The activation.
        input_gradient: Its gradient in x.
        gradients: Its gradients in x, alpha and beta.
        names: The activations that they compute.
    """

    def __init__(self, value: Callable, input_gradient: Callable, gradients: Callable, names: Collection[str]) -> None:
        self._value, self._input_gradient, self._gradients = value, input_gradient, gradients
        self.names = names

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
        """The activation, in one pass."""
        return self._value(x, alpha, beta, name, channel_dim)

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient in x and, if `need_params`, the sums for alpha and beta, in one pass."""
        if not need_params:
            return self._input_gradient(grad, x, alpha, beta, name, channel_dim), None, None
        return self._gradients(grad, x, alpha, beta, name, channel_dim)


CPU = Operators(torch.ops.timm_paf.value, torch.ops.timm_paf.input_gradient, torch.ops.timm_paf.gradients, cpu.NAMES)
