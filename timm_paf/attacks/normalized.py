"""Normalisation of pixels in [0, 1] as part of a model."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Normalized']


class Normalized(nn.Module):
    """model((x - mean) / std), for models of normalised images.

    The radius of an attack is in units of [0, 1]; on normalised images it would differ per channel. Mean and standard
    deviation are buffers and are saved with the weights.

    Args:
        model: Takes normalised images (B, C, …).
        mean: One number per channel, in units of [0, 1]; or one for all channels.
        std: Standard deviations, positive, as many as means.

    Raises:
        ValueError: If their numbers differ, std is not positive or a number is not finite.

    Example:
        >>> model = Normalized.of_timm(timm.create_model('resnet50', pretrained=True))
    """
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        values = [torch.as_tensor(v, dtype=torch.float32).flatten() for v in (mean, std)]
        if len(values[0]) != len(values[1]) or not len(values[0]):
            raise ValueError(f'mean = {mean} and std = {std}: expected one number per channel in both.')
        if not all(v.isfinite().all() for v in values) or not (values[1] > 0).all():
            raise ValueError(f'mean = {mean}, std = {std}: expected finite numbers, and std above 0.')
        if values[0].abs().max() > 1.5:
            raise ValueError(f'mean = {mean}: expected units of [0, 1]; divide mean and std by 255.')
        self.model = model
        like = next((p for p in model.parameters()), values[0])
        self.register_buffer('mean', values[0].to(like.device))
        self.register_buffer('std', values[1].to(like.device))

    @classmethod
    def of_timm(cls, model: nn.Module) -> 'Normalized':
        """Wrap a timm model with the mean and std in its `pretrained_cfg`.

        Raises:
            ValueError: If the model has none.
        """
        cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
        mean, std = cfg.get('mean'), cfg.get('std')
        if mean is None or std is None:
            raise ValueError(
                f"{type(model).__name__} has no pretrained_cfg with 'mean' and 'std'; pass them: "
                'Normalized(model, mean, std).')
        return cls(model, mean, std)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f'images of shape {tuple(x.shape)} for {len(self.mean)} means; expected (B, {len(self.mean)}, …).')
        mean, std = (v.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2)) for v in (self.mean, self.std))
        return self.model((x - mean) / std)
