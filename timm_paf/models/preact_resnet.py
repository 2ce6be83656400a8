"""ResNets with pre-activation for small images, the networks of the work on robust overfitting.

He et al., arXiv 1603.05027, in the form of Rice, Wong and Kolter, arXiv 2002.11569: widths 64 to 512, shortcuts with
weights start from the activated input, and a norm and an activation stand before the pooling.
"""
from collections.abc import Sequence

from timm.layers import LayerType
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, jit, nn

from timm_paf.models._preact import PreActNet
from timm_paf.models._variants import NUM_CLASSES, pixel_cfg, register_variants, variant_cfgs

__all__ = ['PreActResNet']

_ARCHITECTURES = {
    'preact_resnet18': dict(layers=(2, 2, 2, 2)),
}


class PreActResNet(PreActNet):
    """ResNet with basic pre-activation blocks for inputs (B, in_chans, H, W) of any size.

    Args:
        layers: Number of blocks of each of the four stages.
        channels: Channels of each stage; the stem has those of the first.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: timm's pooling type.
        output_stride: 8, 4 or 2; below 8 the last stages are dilated.
        act_layer: Activation as a name, class or factory.
        norm_layer: Normalisation as a name or class.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, growing linearly over the blocks.
        input_mean: As PreActNet, with `input_std` and `pad_type`.

    Raises:
        ValueError: If there are not four stages, or output_stride is none of 8, 4, 2.
    """

    num_feature_levels = 5

    def __init__(
            self,
            layers: tuple[int, ...] = (2, 2, 2, 2),
            channels: tuple[int, ...] = (64, 128, 256, 512),
            num_classes: int = NUM_CLASSES,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 8,
            act_layer: LayerType = nn.ReLU,
            norm_layer: LayerType = nn.BatchNorm2d,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            input_mean: Sequence[float] | None = None,
            input_std: Sequence[float] | None = None,
            pad_type: str = '',
            device=None,
            dtype=None,
    ) -> None:
        if len(layers) != 4 or len(channels) != 4:
            raise ValueError(f'layers = {layers}, channels = {channels}: expected four numbers each, one a stage.')
        super().__init__(
            channels[0], channels, layers,
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, output_stride=output_stride,
            act_layer=act_layer, norm_layer=norm_layer, drop_rate=drop_rate, drop_path_rate=drop_path_rate,
            input_mean=input_mean, input_std=input_std, pad_type=pad_type, device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activated features (B, num_features, H/8, W/8)."""
        x = self.conv1(self.normalize(x))
        if self.grad_checkpointing and not jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            x = self.layer4(x)
        return self.finish(x)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('conv1', 'fc'))
register_variants(PreActResNet, _ARCHITECTURES, __name__)
