"""Recomputes inputs of activations in the backward pass, from tensors that are kept in any case."""
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['Affine', 'keeping', 'set_recomputed']

_OUTPUT = 'timm_paf.output'  # in a node's metadata: the tensor that it gave
_CHAIN = 32  # largest number of nodes of a residual branch that are searched


class Affine(NamedTuple):
    """A tensor as scale x + shift, whose parts take less memory or are kept in any case."""
    x: Tensor
    scale: Tensor
    shift: Tensor

    def tensor(self) -> Tensor:
        """The tensor, in the dtype of x."""
        with torch.no_grad():
            return torch.addcmul(self.shift, self.x, self.scale).to(self.x.dtype)


class _Sum(NamedTuple):
    """A residual sum: a norm's output and the shortcut, which another operation keeps or is a norm's output too."""
    branch: Affine
    shortcut: Affine | Tensor

    def tensor(self) -> Tensor:
        shortcut = self.shortcut.tensor() if isinstance(self.shortcut, Affine) else self.shortcut.detach()
        return self.branch.tensor().add_(shortcut)


def set_recomputed(y: Tensor, affine: Affine) -> None:
    """Set how to recompute a tensor, so that an activation of it keeps the parts of `affine` instead.

    This holds for the activation of y, and for that of the sum after `y += shortcut` if the shortcut is available in
    the backward pass as well: as the input of a convolution of the branch, or as another such tensor.

    Args:
        y: The tensor, with a graph, as it is now.
        affine: The same tensor as scale x + shift, up to rounding.
    """
    y._timm_paf_recomputed = (affine, y._version)  # type: ignore[attr-defined]
    # the name of a shortcut, of which a sum knows the node; weak, since a graph outlives what it keeps
    y.grad_fn.metadata[_OUTPUT] = weakref.ref(y)  # type: ignore[union-attr, index]


def keeping(x: Tensor) -> AbstractContextManager:
    """Context in which the activation of x saves x, or the parts to recompute it."""
    affine, version = getattr(x, '_timm_paf_recomputed', (None, 0))
    if affine is None or not torch.is_grad_enabled():
        return nullcontext()
    recomputed: Affine | _Sum | None = affine
    if x._version != version:
        recomputed = _sum(affine, x) if x._version == version + 1 else None
    if recomputed is None:
        return nullcontext()
    pointer, shape = x.data_ptr(), x.shape  # not x itself, which this function would keep alive

    def pack(tensor: Tensor) -> Tensor | Affine | _Sum:
        return recomputed if tensor.data_ptr() == pointer and tensor.shape == shape else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(saved: Tensor | Affine | _Sum) -> Tensor:
    return saved.tensor() if isinstance(saved, (Affine, _Sum)) else saved


def _sum(branch: Affine, x: Tensor) -> _Sum | None:
    """X as the sum that it is, after one change in place; None if the change was another."""
    node = x.grad_fn
    if node is None or type(node).__name__ != 'AddBackward0' or node._saved_alpha != 1:  # type: ignore[attr-defined]
        return None
    norm, edge = node.next_functions
    output = norm[0].metadata.get(_OUTPUT) if norm[0] is not None else None  # type: ignore[attr-defined]
    if output is None or output() is not x or edge[0] is None:
        return None
    shortcut = _shortcut(norm[0], edge)
    if shortcut is None or _shape(shortcut) != x.shape:  # one that is broadcast has less to say than x
        return None
    return _Sum(branch, shortcut)


def _shape(shortcut: Affine | Tensor) -> torch.Size:
    return (shortcut.x if isinstance(shortcut, Affine) else shortcut).shape


def _shortcut(norm: Any, edge: tuple[Any, int]) -> Affine | Tensor | None:
    """The tensor of an edge of the graph: a norm's output, or what a convolution before a norm has kept."""
    output = edge[0].metadata.get(_OUTPUT)
    if output is not None and output() is not None:
        affine, version = output()._timm_paf_recomputed
        if output()._version == version:
            return affine
    node = norm
    for _ in range(_CHAIN):
        above = node.next_functions[0] if node.next_functions else (None, 0)
        if above[0] is None:
            return None
        if above[0] is edge[0] and above[1] == edge[1]:
            return node._saved_input if type(node).__name__.startswith('ConvolutionBackward') else None
        node = above[0]
    return None
