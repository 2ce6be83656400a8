"""A model as RobustBench's `benchmark()` and AutoAttack's packages expect it."""
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from timm_paf.models.options import InputNormalization, input_normalization

__all__ = ['RobustBenchModel', 'to_robustbench']

# what attacks may leave outside of [0, 1] by rounding
_SLACK = 1e-4


class RobustBenchModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] to float32 logits (B, num_classes), in float32 also under autocast.

    Made by `to_robustbench`. `forward` raises ValueError for images of another shape or range and for NaN.

    Args:
        model: Network in eval mode and float32.
        normalize: What to apply to the images before it.
    """

    def __init__(self, model: nn.Module, normalize: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f'images of shape {tuple(x.shape)} and {x.dtype}: expected floats (B, C, H, W) in [0, 1].')
        if x.numel():
            low, high = x.detach().aminmax()
            if not (low >= -_SLACK and high <= 1 + _SLACK):  # written so that NaN fails
                raise ValueError(
                    f'images from {low.item():.4g} to {high.item():.4g}: expected pixels in [0, 1], without '
                    'normalisation; divide by 255, or leave the normalisation to the model.')
        with torch.autocast(x.device.type, enabled=False):
            return self.model(self.normalize(x.float()))


def to_robustbench(
        model: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
) -> RobustBenchModel:
    """A frozen copy of a model for RobustBench's `benchmark()`, pyautoattack and their like.

    The copy is in eval mode and float32, and its parameters need no gradient. The model is left as it is.

    Args:
        model: Any classifier; the networks of this package take pixels in [0, 1] and need nothing more.
        mean: One value a channel to subtract from the images, for a model that was trained on normalised ones.
        std: One value a channel to divide by.

    Returns:
        Module from images (B, C, H, W) in [0, 1] to logits.

    Raises:
        ValueError: If the model's `pretrained_cfg` names a normalisation and neither mean nor std is given, since the
            model does not show whether it was trained with it.

    Example:
        >>> robustbench.benchmark(timm_paf.to_robustbench(model), dataset='cifar10', threat_model='Linf', eps=8 / 255)
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    cfg_mean, cfg_std = tuple(cfg.get('mean') or ()), tuple(cfg.get('std') or ())
    named = any(value != 0 for value in cfg_mean) or any(value != 1 for value in cfg_std)
    inside = isinstance(getattr(model, 'normalize', None), InputNormalization)
    if mean is None and std is None and named and not inside:
        raise ValueError(
            f'pretrained_cfg names mean {cfg_mean} and std {cfg_std}: pass them as mean= and std= if the model was '
            'trained on such images, or zeros and ones if it takes pixels in [0, 1].')
    network = copy.deepcopy(model).eval().float().requires_grad_(False)
    device = next((tensor.device for tensor in network.parameters()), torch.device('cpu'))
    channels = len(mean) if mean is not None else 0
    normalize = input_normalization(mean, std, channels, device=device, dtype=torch.float32)
    return RobustBenchModel(network, normalize).eval().requires_grad_(False)
