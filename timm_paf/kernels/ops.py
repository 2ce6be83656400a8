"""The fused functions as operators of torch, so that profilers, dispatch modes and fake tensors know them."""

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf.kernels import cpu

__all__ = ['CPU', 'Operators']

_TENSORS = 'Tensor x, Tensor alpha, Tensor? beta, str name, int channel_dim'
_library = torch.library.Library('timm_paf', 'DEF')


def _define(name: str, schema: str, function, fake) -> None:
    _library.define(f'{name}{schema}')
    _library.impl(name, function, 'CPU')
    torch.library.register_fake(f'timm_paf::{name}', fake, lib=_library)


def _like_x(x, *_):
    return torch.empty_like(x)


def _like_second(grad, x, *_):
    return torch.empty_like(x)


def _fake_gradients(grad, x, alpha, beta, name, channel_dim):
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
    """

    def __init__(self, value, input_gradient, gradients) -> None:
        self._value, self._input_gradient, self._gradients = value, input_gradient, gradients

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
        """The activation, in one pass."""
        return self._value(x, alpha, beta, name, channel_dim)

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient in x and, if asked for, the sums for alpha and beta, in one pass."""
        if not need_params:
            return self._input_gradient(grad, x, alpha, beta, name, channel_dim), None, None
        return self._gradients(grad, x, alpha, beta, name, channel_dim)


CPU = Operators(torch.ops.timm_paf.value, torch.ops.timm_paf.input_gradient, torch.ops.timm_paf.gradients)
