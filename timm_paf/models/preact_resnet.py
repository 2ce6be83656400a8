"""Pre-activation ResNets for small images, the standard networks of work on robust overfitting.

He et al., arXiv 1603.05027, in the form of Rice, Wong and Kolter, arXiv 2002.11569: widths 64 to 512, shortcuts with
weights start from the activated input, and a norm and an activation precede the pooling.
"""
from typing import Any

from timm_paf.models._preact import PreActNet
from timm_paf.models._variants import pixel_cfg, register_variants, variant_cfgs

__all__ = ['PreActResNet']

_ARCHITECTURES = {'preact_resnet18': dict(layers=(2, 2, 2, 2))}


class PreActResNet(PreActNet):
    """ResNet with basic pre-activation blocks for inputs (B, in_chans, H, W) of any size.

    Args:
        layers: Number of blocks of each of the four stages.
        channels: Channels of each stage; the stem has as many as the first.
        **kwargs: As timm's ResNet (`num_classes`, `in_chans`, `global_pool`, `act_layer`, `norm_layer`, `drop_rate`,
            `drop_path_rate`); `output_stride` 8, 4 or 2, below 8 with dilated last stages; `input_mean`, `input_std`:
            one number per channel for normalisation inside; `pad_type`: '' or 'same'.

    Raises:
        ValueError: If there are not four stages, or an argument is outside its range.
    """

    num_feature_levels = 5

    def __init__(
            self, layers: tuple[int, ...] = (2, 2, 2, 2), channels: tuple[int, ...] = (64, 128, 256, 512),
            **kwargs: Any) -> None:
        if len(layers) != 4 or len(channels) != 4:
            raise ValueError(f'layers = {layers}, channels = {channels}: expected four numbers in each, one per stage.')
        super().__init__(channels[0], channels, layers, **kwargs)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('conv1', 'fc'))
register_variants(PreActResNet, _ARCHITECTURES, __name__)
