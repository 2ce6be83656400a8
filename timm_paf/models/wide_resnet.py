"""Wide residual networks with pre-activation for small images.

Zagoruyko and Komodakis, arXiv 1605.07146; WRN-d-k has (d - 4)/6 blocks a stage and k times the base widths 16, 32, 64.
"""
from collections.abc import Sequence

from timm.layers import LayerType
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, jit, nn

from timm_paf.models._preact import PreActBlock, PreActNet
from timm_paf.models._variants import NUM_CLASSES, pixel_cfg, register_variants, variant_cfgs

__all__ = ['PreActBlock', 'WideResNet']

_ARCHITECTURES = {
    'wrn10_2': dict(depth=10, widen_factor=2),
    'wrn28_4': dict(depth=28, widen_factor=4),
    'wrn28_10': dict(depth=28, widen_factor=10),
    'wrn34_10': dict(depth=34, widen_factor=10),
    'wrn34_20': dict(depth=34, widen_factor=20),
    'wrn70_16': dict(depth=70, widen_factor=16),
}


class WideResNet(PreActNet):
    """WRN-depth-widen_factor for inputs (B, in_chans, H, W) of any size.

    Args:
        depth: 6 n + 4 with n blocks in each of the three stages.
        widen_factor: Factor on the base widths 16, 32 and 64.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: timm's pooling type.
        output_stride: 4, 2 or 1; below 4 the last stages are dilated.
        act_layer: Activation as a name, class or factory.
        norm_layer: Normalisation as a name or class.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, growing linearly over the blocks.
        input_mean: As PreActNet, with `input_std` and `pad_type`.

    Raises:
        ValueError: If depth is not 6 n + 4, or output_stride none of 4, 2, 1.
    """

    num_feature_levels = 4

    def __init__(
            self,
            depth: int = 28,
            widen_factor: int = 10,
            num_classes: int = NUM_CLASSES,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 4,
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
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth = {depth}: expected 6 n + 4 with n >= 1, such as 10, 28, 34 or 70.')
        super().__init__(
            16, [16 * widen_factor, 32 * widen_factor, 64 * widen_factor], 3 * [(depth - 4) // 6],
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, output_stride=output_stride,
            act_layer=act_layer, norm_layer=norm_layer, drop_rate=drop_rate, drop_path_rate=drop_path_rate,
            input_mean=input_mean, input_std=input_std, pad_type=pad_type, device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activated features (B, num_features, H/4, W/4)."""
        x = self.conv1(self.normalize(x))
        if self.grad_checkpointing and not jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.finish(x)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('conv1', 'fc', pool_size=(8, 8)))
register_variants(WideResNet, _ARCHITECTURES, __name__)
