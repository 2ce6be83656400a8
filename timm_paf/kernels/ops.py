"""The fused functions as operators of torch, for profilers, dispatch modes and fake tensors."""
from collections.abc import Callable, Collection
from typing import NamedTuple

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


def _fake_gradients(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, name: str, channel_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x.dtype)
    return (
        torch.empty_like(x), torch.empty(alpha.shape, dtype=dtype, device=x.device),
        torch.empty((0,) if beta is None else beta.shape, dtype=dtype, device=x.device))


_define('value', f'({_TENSORS}) -> Tensor', cpu.value, lambda x, *_: torch.empty_like(x))
_define('input_gradient', f'(Tensor grad, {_TENSORS}) -> Tensor', cpu.input_gradient,
        lambda grad, x, *_: torch.empty_like(x))
_define('gradients', f'(Tensor grad, {_TENSORS}) -> (Tensor, Tensor, Tensor)', cpu.gradients, _fake_gradients)


class Operators(NamedTuple):
    """Three functions with the signatures of `cpu.value`, `cpu.input_gradient` and `cpu.gradients`, for these names."""
    plain_value: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    all_gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]
    names: Collection[str]

    def value(self, name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
        """The activation, in one pass."""
        return self.plain_value(x, alpha, beta, name, channel_dim)

    def gradients(
            self, name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
            need_params: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient in x and, if `need_params`, the sums for alpha and beta, in one pass."""
        if not need_params:
            return self.input_gradient(grad, x, alpha, beta, name, channel_dim), None, None
        return self.all_gradients(grad, x, alpha, beta, name, channel_dim)


CPU = Operators(torch.ops.timm_paf.value, torch.ops.timm_paf.input_gradient, torch.ops.timm_paf.gradients, cpu.NAMES)
