"""Activations on the CPU in one pass over memory each way, by compiled C++."""
import ctypes
import threading
from typing import Any, Optional

import torch
from torch import Tensor

from .compiler import BuildError, build

__all__ = ['available', 'gradients', 'input_gradient', 'value']

_DTYPES = {  # dtype -> how the source calls it, and the dtype of the computation
    torch.float32: ('float', 'float', torch.float32),
    torch.float64: ('double', 'double', torch.float64),
    torch.bfloat16: ('bfloat16', 'float', torch.float32),
    torch.float16: ('float16', 'float', torch.float32),
}
_GRAIN = 2**15  # elements that are worth a thread
_functions: dict[tuple[str, torch.dtype], Any] = {}
_failures: dict[tuple[str, torch.dtype], str] = {}
_lock = threading.Lock()


def available(name: str, dtype: torch.dtype) -> Optional[str]:
    """Make sure that an activation's function is loaded, which takes a second or two for the first time on a machine.

    Args:
        name: An activation of `functional`.
        dtype: The dtype of x.

    Returns:
        None if it is; else why it cannot be had.
    """
    key = (name, dtype)
    if key in _functions:
        return None
    with _lock:
        if key not in _functions and key not in _failures:
            if dtype not in _DTYPES:
                _failures[key] = f'there is none for {dtype}'
                return _failures[key]
            storage, compute, _ = _DTYPES[dtype]
            try:
                library = build((f'-DACTIVATION={name}', f'-DSTORAGE={storage}', f'-DCOMPUTE={compute}'))
                function = library.timm_paf_run
            except (BuildError, AttributeError) as error:
                _failures[key] = str(error)
            else:
                function.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 3 + [ctypes.c_int]
                function.restype = None
                _functions[key] = function
    return _failures.get(key)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """x, laid out in memory as `like` is."""
    return x if x.stride() == like.stride() and x.dtype == like.dtype else torch.empty_like(like).copy_(x)


class _Call:
    """The arguments that value and gradients have in common."""

    def __init__(self, name: str, x: Tensor, alpha: Tensor, beta: Optional[Tensor], channel_dim: int) -> None:
        if reason := available(name, x.dtype):
            raise RuntimeError(f'{name}: the fused function cannot be had: {reason}.')
        self.function = _functions[name, x.dtype]
        self.out = torch.empty_like(x)  # dense, with x's order of dimensions
        self.x = _dense(x, self.out)
        self.channels = max(alpha.numel(), 1 if beta is None else beta.numel())
        self.dtype = _DTYPES[x.dtype][2]
        self.alpha = self._parameter(alpha)
        self.beta = None if beta is None else self._parameter(beta)
        inner = self.x.stride(channel_dim) if self.channels > 1 else 1
        self.shape = (x.numel() // (self.channels * inner), self.channels, inner) if x.numel() else (0, 1, 1)

    def _parameter(self, parameter: Tensor) -> Tensor:
        parameter = parameter.detach().to(device='cpu', dtype=self.dtype).reshape(-1)
        return parameter.expand(self.channels).contiguous() if self.channels > 1 else parameter

    def run(self, grad: Optional[Tensor] = None, dalpha: Optional[Tensor] = None, dbeta: Optional[Tensor] = None):
        """Fill `out` and, if given, the parameters' gradients."""
        if not self.x.numel():
            return self.out
        threads = min(torch.get_num_threads(), max(self.x.numel() // _GRAIN, 1))
        pointers = (grad, self.x, self.out, self.alpha, self.beta, dalpha, dbeta)
        self.function(*(None if tensor is None else tensor.data_ptr() for tensor in pointers), *self.shape, threads)
        return self.out


def value(x: Tensor, alpha: Tensor, beta: Optional[Tensor], name: str, channel_dim: int) -> Tensor:
    """As the function in `functional`."""
    return _Call(name, x, alpha, beta, channel_dim).run()


def input_gradient(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Optional[Tensor], name: str, channel_dim: int) -> Tensor:
    """grad df/dx, like x."""
    call = _Call(name, x, alpha, beta, channel_dim)
    return call.run(_dense(grad, call.out))


def gradients(
        grad: Tensor, x: Tensor, alpha: Tensor, beta: Optional[Tensor], name: str, channel_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad df/dx, and the sums of grad df/dalpha and grad df/dbeta.

    Returns:
        The first like x; the others in the dtype of the computation and the shape of their parameter, summed in double
        precision in an order that the shape of x alone decides. The last is empty if there is no beta.
    """
    call = _Call(name, x, alpha, beta, channel_dim)
    sums = [torch.zeros(call.channels, dtype=call.dtype) for _ in range(2)]
    grad_x = call.run(_dense(grad, call.out), sums[0], None if beta is None else sums[1])
    shared = [total if parameter is None or parameter.numel() == call.channels else total.sum()
              for total, parameter in zip(sums, (alpha, beta), strict=True)]
    grad_beta = sums[1].new_empty(0) if beta is None else shared[1].reshape(beta.shape)
    return grad_x, shared[0].reshape(alpha.shape), grad_beta
