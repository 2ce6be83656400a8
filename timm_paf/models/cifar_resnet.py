"""ResNets for small images: timm's ResNet with a 3x3 stride-1 stem and no max-pooling.

The usual ResNets for CIFAR-10 in papers on robustness (He et al., arXiv 1512.03385, section 4.2, with the widths and
blocks of the ImageNet networks).
"""
from typing import Any, cast

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from timm_paf.models._pixel_resnet import PixelResNet
from timm_paf.models._variants import NUM_CLASSES, pixel_cfg, register_variants, variant_cfgs

__all__ = ['CifarResNet']

_ARCHITECTURES = {
    'resnet18': dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    'resnet34': dict(block=BasicBlock, layers=(3, 4, 6, 3)),
    'resnet50': dict(block=Bottleneck, layers=(3, 4, 6, 3)),
}


class CifarResNet(PixelResNet):
    """timm's ResNet whose features have 1/8, not 1/32, of the input's resolution.

    Args:
        block: Residual block class of timm.models.resnet.
        layers: Number of blocks of each stage.
        output_stride: 8, 4 or 2; below 8 the last stages are dilated.
        zero_init_last: Start the last BatchNorm of each block at 0; off by default, as in the paper.
        **kwargs: As timm's ResNet, and `input_mean`, `input_std`: one number per channel for normalisation inside.

    Raises:
        ValueError: If output_stride is none of 8, 4, 2, or mean and std do not fit in_chans.
    """

    def __init__(
            self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], num_classes: int = NUM_CLASSES,
            in_chans: int = 3, output_stride: int = 8, zero_init_last: bool = False, **kwargs: Any,
    ) -> None:
        if output_stride not in (8, 4, 2):
            raise ValueError(f'output_stride = {output_stride}: expected 8, 4 or 2.')
        # timm counts from a stem of stride 4; this one has stride 1
        super().__init__(
            block, layers, num_classes=num_classes, in_chans=in_chans, output_stride=4 * output_stride,
            zero_init_last=zero_init_last, **kwargs)
        stem = nn.Conv2d(
            in_chans, self.feature_info[0]['num_chs'], kernel_size=3, padding=1, bias=False,
            device=kwargs.get('device'), dtype=kwargs.get('dtype'))
        nn.init.kaiming_normal_(stem.weight, mode='fan_out', nonlinearity='relu')
        self.conv1 = cast(Any, stem)  # timm's annotations name other classes
        self.maxpool = cast(Any, nn.Identity())
        self.feature_info[0]['reduction'] = 1
        for info in self.feature_info[1:]:
            info['reduction'] //= 4


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('conv1', 'fc'))
register_variants(CifarResNet, _ARCHITECTURES, __name__)
