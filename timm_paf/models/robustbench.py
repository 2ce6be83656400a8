"""Adapter for RobustBench's `benchmark()` and packages of AutoAttack."""
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from timm_paf._normalized import is_identity, normalization_of
from timm_paf.models.options import input_normalization

__all__ = ['RobustBenchModel', 'to_robustbench']

_SLACK = 1e-4  # pixels of attacked images may be outside [0, 1] by rounding


class RobustBenchModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] to float32 logits (B, num_classes); computes in float32 under autocast too.

    `to_robustbench` creates it. `forward` raises ValueError for images of another shape or range, and for NaN.
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
                    'normalisation; divide by 255, or normalise inside the model.')
        with torch.autocast(x.device.type, enabled=False):
            return self.model(self.normalize(x.float()))


def to_robustbench(
        model: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> RobustBenchModel:
    """Make a frozen copy of a model for RobustBench's `benchmark()`, pyautoattack and similar packages.

    The copy is in eval mode and float32, and its parameters need no gradient. The model does not change.

    Args:
        model: Any classifier; the networks of this package take pixels in [0, 1] and need no mean and std.
        mean: One number per channel to subtract from the images, for a model trained on normalised images.
        std: One number per channel to divide by.

    Raises:
        ValueError: If the model's `pretrained_cfg` has a normalisation and neither mean nor std is given, since it is
            unknown whether the model was trained with it; or if they are given and the model normalises already.

    Example:
        >>> robustbench.benchmark(timm_paf.to_robustbench(model), dataset='cifar10', threat_model='Linf', eps=8 / 255)
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    cfg_mean, cfg_std = (tuple(cfg.get(name) or ()) for name in ('mean', 'std'))
    inside = normalization_of(model) is not None
    if inside and mean is not None:
        raise ValueError('the model normalises its input already; pass no mean and std.')
    if mean is None and std is None and not inside and not is_identity(cfg_mean, cfg_std):
        raise ValueError(
            f'pretrained_cfg has mean {cfg_mean} and std {cfg_std}: pass them as mean= and std= if the model was '
            'trained on such images, or zeros and ones if it takes pixels in [0, 1].')
    network = copy.deepcopy(model).eval().float().requires_grad_(False)
    device = next((tensor.device for tensor in network.parameters()), torch.device('cpu'))
    normalize = input_normalization(mean, std, len(mean or ()), device=device, dtype=torch.float32)
    return RobustBenchModel(network, normalize).eval().requires_grad_(False)
