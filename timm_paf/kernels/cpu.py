"""Activations on the CPU by compiled C++, in one pass over memory for the value and one for the gradient."""
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from timm_paf._dtypes import compute_dtype
from timm_paf.kernels.compiler import BuildError, build

__all__ = ['NAMES', 'available', 'dense', 'gradients', 'value']

# activations with a function in cpp/formulas.h
NAMES = frozenset(('prelu0', 'preluplus', 'pelu', 'peluplus', 'psilu', 'psoftplus', 'reblu', 'pssilu'))
_STORAGE = {
    torch.float32: 'float', torch.float64: 'double', torch.bfloat16: 'bfloat16', torch.float16: 'float16'}  # in C++
_GRAIN = 2**15  # smallest number of elements per thread


@functools.cache
def _function(name: str, dtype: torch.dtype) -> tuple[Any, str | None]:
    """The compiled function of an activation, or the reason why it is not available."""
    if dtype not in _STORAGE:
        return None, f'there is no kernel for {dtype}'
    compute = _STORAGE[compute_dtype(dtype)]
    try:
        function = build((f'-DACTIVATION={name}', f'-DSTORAGE={_STORAGE[dtype]}', f'-DCOMPUTE={compute}')).timm_paf_run
    except (BuildError, AttributeError) as error:
        return None, str(error)
    function.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    function.restype = None
    return function, None


def available(name: str, dtype: torch.dtype) -> str | None:
    """Load the function of an activation; the first time on a machine it is compiled, in a second or two.

    Returns:
        None if it is available; otherwise the reason why it is not.
    """
    return _function(name, dtype)[1]


def dense(x: Tensor, like: Tensor) -> Tensor:
    """A tensor with the values of x in the memory layout of `like`."""
    return x if x.stride() == like.stride() and x.dtype == like.dtype else torch.empty_like(like).copy_(x)


def _parameter(parameter: Tensor, dtype: torch.dtype, channels: int) -> Tensor:
    """The parameter in the dtype of the computation: one value, or a contiguous row of one per channel."""
    if parameter.dtype != dtype:
        parameter = parameter.to(dtype)
    return parameter.reshape(-1).expand(channels).contiguous() if channels > 1 else parameter


def _run(
        name: str, grad: Tensor | None, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int,
        with_sums: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The value, or with `grad` the gradient in x; with_sums adds the sums for alpha and beta."""
    function, reason = _function(name, x.dtype)
    if reason:
        raise RuntimeError(f'{name}: the fused function is not available: {reason}.')
    out = torch.empty_like(x)  # dense, with x's order of dimensions
    x = dense(x, out)
    dtype = compute_dtype(x.dtype)
    channels = max(alpha.numel(), 1 if beta is None else beta.numel())
    sums = [x.new_zeros(channels, dtype=dtype) for _ in range(2)] if with_sums else None
    count = x.numel()
    if count:
        inner = x.stride(channel_dim) if channels > 1 else 1
        # referenced until the call ends
        alpha = _parameter(alpha, dtype, channels)
        beta = None if beta is None else _parameter(beta, dtype, channels)
        grad = None if grad is None else dense(grad, out)
        function(
            None if grad is None else grad.data_ptr(), x.data_ptr(), out.data_ptr(), alpha.data_ptr(),
            None if beta is None else beta.data_ptr(), None if sums is None else sums[0].data_ptr(),
            None if sums is None or beta is None else sums[1].data_ptr(),
            count // (channels * inner), channels, inner,
            min(torch.get_num_threads(), count // _GRAIN) if count > _GRAIN else 1)
    return (out, None, None) if sums is None else (out, sums[0], sums[1])


def value(name: str, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int) -> Tensor:
    """The activation of x, as in `functional`."""
    return _run(name, None, x, alpha, beta, channel_dim)[0]


def gradients(
        name: str, grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor | None, channel_dim: int, need_params: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Grad df/dx, like x, and if `need_params` the sums of grad df/dalpha and grad df/dbeta, like their parameter.

    They are summed in double precision in an order that depends only on the shape of x.
    """
    grad_x, grad_alpha, grad_beta = _run(name, grad, x, alpha, beta, channel_dim, need_params)
    return grad_x, _of(alpha, grad_alpha), _of(beta, grad_beta)


def _of(parameter: Tensor | None, total: Tensor | None) -> Tensor | None:
    """The gradient of a parameter with one value, where the other parameter may have one per channel."""
    if parameter is None or total is None:
        return None
    if parameter.numel() != total.numel():
        total = total.sum(dtype=torch.float64).to(total.dtype)
    return total if total.shape == parameter.shape else total.reshape(parameter.shape)
