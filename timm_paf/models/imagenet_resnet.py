"""timm's ResNet (He et al., arXiv 1512.03385) for images of 224x224 pixels in [0, 1], such as ImageNet's."""
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.models._manipulate import checkpoint_seq
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from timm_paf.models._variants import pixel_cfg, register_variants, variant_cfgs

__all__ = ['ImageNetResNet']

_ARCHITECTURES = {
    'resnet18_224': dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    'resnet50_224': dict(block=Bottleneck, layers=(3, 4, 6, 3)),
}


class ImageNetResNet(ResNet):
    """timm's ResNet with a module of its own for the features of the stem; loads weights of timm's ResNet.

    timm reads these features at `act1`. A shared `act1` runs many times, so that an extractor with hooks or a traced
    graph would read the output of another call.

    Args:
        block: Residual block class of timm.models.resnet.
        layers: Number of blocks of each stage.
        output_stride: 32, 16 or 8; below 32 the last stages are dilated.
        **kwargs: As timm's ResNet.

    Raises:
        ValueError: If output_stride is none of 32, 16, 8.
    """

    num_feature_levels = 5
    feature_info: list[dict[str, Any]]
    if TYPE_CHECKING:  # TorchScript would read these annotations at run time, and does not know nn.Sequential
        layer1: nn.Sequential
        layer2: nn.Sequential
        layer3: nn.Sequential
        layer4: nn.Sequential

    def __init__(
            self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], output_stride: int = 32,
            **kwargs: Any,
    ) -> None:
        if output_stride not in (32, 16, 8):
            raise ValueError(f'output_stride = {output_stride}: expected 32, 16 or 8.')
        super().__init__(cast(Any, block), layers, output_stride=output_stride, **kwargs)
        self.stem_features = nn.Identity()
        # extractors that rebuild a network run its children in order: `stem_features` must come right after `act1`
        for name in ('maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'global_pool', 'fc'):
            self._modules[name] = self._modules.pop(name)
        self.feature_info[0]['module'] = 'stem_features'

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, num_features, H/output_stride, W/output_stride)."""
        x = self.maxpool(self.stem_features(self.act1(self.bn1(self.conv1(x)))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg(
    'conv1', 'fc', num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875))
register_variants(ImageNetResNet, _ARCHITECTURES, __name__)
