"""What a gradient attack is called with, and what the model answers."""

import torch
from torch import Tensor

__all__ = ['check_batch', 'check_logits']


def check_batch(
        x: Tensor,
        y: Tensor,
        *,
        seeds: Tensor | None = None,
        target: Tensor | None = None,
        clean_logits: Tensor | None = None,
) -> None:
    """See that the tensors fit together; their values are not looked at, which would wait for the device.

    Raises:
        ValueError: If x is not a floating-point batch, or another tensor has not one row an image.
        RuntimeError: Inside torch.inference_mode.
    """
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise RuntimeError('PGD needs gradients, which torch.inference_mode rules out; use torch.no_grad instead.')
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(
            f'x is a {x.dtype} tensor of shape {tuple(x.shape)}; expected a floating-point batch (B, C, H, W).')
    for label, what, value in (('y', 'label', y), ('seeds', 'seed', seeds), ('target', 'class', target)):
        if value is not None and value.shape != x.shape[:1]:
            raise ValueError(
                f'{label} has shape {tuple(value.shape)}; expected one {what} for each of {x.shape[0]} images.')
        if value is not None and value.dtype != torch.int64:
            raise ValueError(f'{label} is a {value.dtype} tensor; expected torch.int64.')
    if clean_logits is not None and (clean_logits.dim() != 2 or len(clean_logits) != len(x)):
        raise ValueError(
            f'clean_logits has shape {tuple(clean_logits.shape)}; expected logits (B, K) of {len(x)} images.')


def check_logits(logits: Tensor, n: int, *, differentiable: bool = False) -> Tensor:
    """The logits of n images, if they are some.

    Raises:
        ValueError: If they are not (n, K), or should have a gradient and have none.
    """
    if logits.dim() != 2 or len(logits) != n:
        raise ValueError(f'the model returns a tensor of shape {tuple(logits.shape)}; expected logits ({n}, classes).')
    if differentiable and not logits.requires_grad:
        raise ValueError(
            "the model's logits have no gradient to its input; a detach, a no_grad or an integer inside it ends every "
            'gradient attack.')
    return logits
