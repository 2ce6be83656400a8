"""timm's ResNet (He et al., arXiv 1512.03385) for images of 224x224 pixels in [0, 1], such as ImageNet's."""
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck

from timm_paf.models._pixel_resnet import PixelResNet
from timm_paf.models._variants import pixel_cfg, register_variants, variant_cfgs

__all__ = ['ImageNetResNet']

_ARCHITECTURES = {
    'resnet18_224': dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    'resnet50_224': dict(block=Bottleneck, layers=(3, 4, 6, 3)),
}


class ImageNetResNet(PixelResNet):
    """timm's ResNet; loads weights of timm's ResNet.

    Args:
        block: Residual block class of timm.models.resnet.
        layers: Number of blocks of each stage.
        output_stride: 32, 16 or 8; below 32 the last stages are dilated.
        **kwargs: As timm's ResNet, and `input_mean`, `input_std`: one number per channel for normalisation inside.

    Raises:
        ValueError: If output_stride is none of 32, 16, 8, or mean and std do not fit in_chans.
    """

    def __init__(
            self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], output_stride: int = 32,
            **kwargs: Any,
    ) -> None:
        if output_stride not in (32, 16, 8):
            raise ValueError(f'output_stride = {output_stride}: expected 32, 16 or 8.')
        super().__init__(block, layers, output_stride=output_stride, **kwargs)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg(
    'conv1', 'fc', num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875))
register_variants(ImageNetResNet, _ARCHITECTURES, __name__)
