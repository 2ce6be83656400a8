"""Verdicts of a model on images, attacked or not."""
from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn

from ..attacks import eval_mode

__all__ = ['Attack', 'verdicts']

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@torch.no_grad()
def verdicts(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: Optional[Attack],
        batch_size: int,
        device: Optional[torch.device],
) -> Tensor:
    """Which images are classified correctly as the attack leaves them, in eval mode; the model is left as found.

    Args:
        model: Maps images to logits.
        x: Images (N, …), on any device.
        y: Labels (N,).
        attack: Called batch by batch; None for none.
        batch_size: Images a batch.
        device: Where the model is; its first parameter's if None.

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: If the attack makes NaN: no verdict on them would say anything about an image.
    """
    device = device or next((p.device for p in model.parameters()), x.device)
    found, finite = [], torch.ones((), dtype=torch.bool, device=device)
    with eval_mode(model):
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            images, labels = images.to(device), labels.to(device)
            if attack is not None:
                images = attack(model, images, labels)
                finite &= images.isfinite().all()
            found.append(model(images).argmax(1) == labels)
    if not finite:
        raise ValueError(
            'the attack made images of NaN, since the gradients of the model are NaN; check_trust says on how many.')
    return torch.cat(found).cpu()
