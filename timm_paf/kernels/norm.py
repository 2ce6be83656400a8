"""BatchNorm whose output is recomputed in the backward pass of the activation after it."""
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from timm_paf.activations.recomputation import Affine, set_recomputed

__all__ = ['RecomputedBatchNorm2d', 'recompute_batch_norm']


@register_notrace_module
class RecomputedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose output a parametric activation recomputes instead of keeping it.

    The norm keeps its input, and the activation would keep the output of the norm. That output is scale x + shift, with
    one scale and shift per channel; the activation keeps these, and recomputes the tensor in its backward pass. Value,
    statistics, state dict and gradients are those of nn.BatchNorm2d. It has no effect under torch.compile, export,
    tracing, torch.func, dispatch modes and other hooks on saved tensors (such as activation checkpointing), or where
    the output changes in place before an activation. One exception: a residual sum, `y += shortcut`, is recomputed too,
    from tensors that the branch keeps.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = super().__call__(*args, **kwargs)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(y) is not Tensor or not y.requires_grad:
            return y
        if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
            return y
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None and len(args) == 1 and not kwargs:
            self._announce(args[0], y)
        return y

    def _announce(self, x: Tensor, y: Tensor) -> None:
        """Register how to recompute y from x."""
        node: Any = y.grad_fn
        if node is None or 'BatchNorm' not in node.name():  # a hook has replaced the output
            return
        with torch.no_grad():
            if self.training or self.running_mean is None or self.running_var is None:
                mean, scale = node._saved_result1, node._saved_result2  # of the batch: mean, 1/sqrt(variance + eps)
            else:
                mean, scale = self.running_mean, (self.running_var + self.eps).rsqrt()
            if self.weight is not None:
                scale = scale * self.weight
            shift = -mean.double() * scale.double()
            if self.bias is not None:
                shift = shift + self.bias
            shape = (-1, 1, 1)
            set_recomputed(y, Affine(x, scale.view(shape), shift.to(scale.dtype).view(shape)))


def recompute_batch_norm(model: nn.Module) -> nn.Module:
    """Turn every nn.BatchNorm2d of a network into a `RecomputedBatchNorm2d`, in place.

    In training the network then keeps as few tensors as one with BatchNorm and in-place ReLU; the cost is one more
    pass over memory per activation in the backward pass. `create_model(..., fuse_bn_act=True)` calls it for the
    networks of this package.

    Args:
        model: Any network. Subclasses of nn.BatchNorm2d do not change.

    Returns:
        The model.

    Raises:
        RuntimeError: If torch is too old (2.6) to report hooks on saved tensors.
    """
    if not hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'):
        raise RuntimeError(
            f'fuse_bn_act needs a newer torch than {torch.__version__}; leave it out, only memory use changes.')
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = RecomputedBatchNorm2d
    return model
