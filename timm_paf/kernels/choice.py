"""Which implementation runs: the one place where it is decided."""
import functools
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from timm_paf.activations.dispatch import Kernels
from timm_paf.kernels import cpu

__all__ = ['choose', 'obstacle', 'use']

MODES = ('auto', 'reference', 'fused')
_PLAIN = (Tensor, nn.Parameter)
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by `is_grads_batched` of torch.autograd.grad
_warned = False


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f'kernels: mode {mode!r}; expected "auto", "reference" or "fused".')
    return mode


_mode = _checked(os.environ.get('TIMM_PAF_KERNELS', 'auto'))


class use:
    """Choose how activations are computed, from now on or, in a `with` statement, until its end.

    The choice holds for the process, since backward passes may run in threads of their own. It starts as the
    environment variable TIMM_PAF_KERNELS says, else as 'auto'. Under torch.compile, export, tracing, forward mode,
    torch.func and dispatch modes, for subclasses of tensors, and for derivatives of derivatives the reference always
    runs.

    Args:
        mode: 'auto' for fused functions where they are available, and the reference elsewhere with one warning;
            'reference' for torch's own operations; 'fused' as 'auto', but with an error where 'auto' would warn.

    Raises:
        ValueError: If mode is something else.

    Example:
        >>> with timm_paf.kernels.use('reference'):
        ...     loss = model(x).sum()
    """

    def __init__(self, mode: str) -> None:
        global _mode
        self._before, _mode = _mode, _checked(mode)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        global _mode
        _mode = self._before


def choose(name: str, x: Tensor, *others: Tensor | None) -> Kernels | None:
    """The fused functions for an activation of x with these parameters and gradients; None for the reference."""
    global _warned
    if (_mode == 'reference' or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack()
            or torch._C._functorch.peek_interpreter_stack() is not None):
        return None
    device, dtype = x.device, x.dtype
    if not (x.is_cpu or (x.is_cuda and dtype is not torch.float64 and x.numel())):
        return None
    for tensor in (x, *others):
        if tensor is not None and (
                type(tensor) not in _PLAIN or tensor.device != device or tensor.layout is not torch.strided
                or tensor.is_neg() or tensor._is_zerotensor() or _is_batched(tensor)):
            return None  # its memory does not hold its values
    module, reason = _implementation(device)
    if module is not None and name not in module.NAMES:
        return None  # this activation has no kernel
    if x.is_cpu:
        reason = cpu.available(name, dtype)
    if reason is None:
        return module
    if _mode == 'fused':
        raise RuntimeError(f'{name}: the fused function is not available: {reason}; use "auto" or "reference".')
    if not _warned:
        _warned = True
        warnings.warn(
            f'activations are computed by the slower reference: {reason}. timm_paf.kernels.use("reference") or '
            'TIMM_PAF_KERNELS=reference says that this is meant.', RuntimeWarning, stacklevel=2)
    return None


def obstacle(device: torch.device) -> str | None:
    """Why the fused functions do not work on a device; None if they do. May compile the first one for a CPU."""
    return cpu.available('pssilu', torch.float32) if device.type == 'cpu' else _implementation(device)[1]


@functools.cache
def _implementation(device: torch.device) -> tuple[Any, str | None]:
    """The module with the fused functions for a device, or why there is none; found by trying."""
    if device.type == 'cpu':
        return cpu, None
    try:
        from timm_paf.kernels import gpu
        x = torch.ones(1, device=device)
        gpu.gradients('pssilu', x, x, x, x, 0, True)
    except Exception as error:  # Triton, its compiler and the driver each have their own
        return None, f'Triton does not work here ({type(error).__name__}: {(str(error).splitlines() or [""])[0]})'
    return gpu, None
