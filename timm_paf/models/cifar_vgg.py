"""VGG networks for small images: five stages of 3x3 convolutions with max-pools between them and one linear layer.

Simonyan and Zisserman, arXiv 1409.1556, configurations A, B, D and E, with the usual head for CIFAR-10: the last map is
pooled and classified, without the two hidden layers of 4096 units.
"""
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import LayerType, get_act_layer, get_norm_layer
from torch import Tensor, nn

from timm_paf.kernels import batch_norm_act
from timm_paf.models._staged import StagedNet
from timm_paf.models._variants import NUM_CLASSES, pixel_cfg, register_variants, variant_cfgs
from timm_paf.models.options import input_normalization

__all__ = ['CifarVGG']

_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f'vgg{depth}': dict(layers=layers) for depth, layers in _DEPTHS.items()},
    **{f'vgg{depth}_bn': dict(layers=layers, norm_layer=nn.BatchNorm2d) for depth, layers in _DEPTHS.items()},
}


class CifarVGG(StagedNet):
    """VGG for inputs (B, in_chans, H, W) of any size.

    The max-pools round the size up, so that maps of small images shrink to 1x1 and no further.

    Args:
        layers: Number of convolutions of each of the five stages.
        channels: Channels of each stage.
        output_stride: 32 only; timm's VGG has this argument.
        norm_layer: Normalisation as a name or class; None for no normalisation.
        input_mean, input_std: One number per channel for normalisation of the input inside.

    The other arguments are as in timm's VGG.

    Raises:
        ValueError: If there are not five stages, output_stride is not 32, or mean and std do not fit in_chans.
    """

    num_feature_levels = 6
    stem = r'layer1\.0\.'

    def __init__(
            self, layers: tuple[int, ...] = _DEPTHS[16], channels: tuple[int, ...] = (64, 128, 256, 512, 512),
            num_classes: int = NUM_CLASSES, in_chans: int = 3, global_pool: str = 'avg', output_stride: int = 32,
            act_layer: LayerType = nn.ReLU, norm_layer: LayerType | None = None, drop_rate: float = 0.,
            input_mean: Sequence[float] | None = None, input_std: Sequence[float] | None = None,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != 5 or len(channels) != 5:
            raise ValueError(f'layers = {layers}, channels = {channels}: expected five numbers in each, one per stage.')
        if output_stride != 32:
            raise ValueError(f'output_stride = {output_stride}: expected 32, since max-pools have no dilated form.')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
        assert act is not None
        self.in_chans, self.drop_rate, self.feature_info = in_chans, drop_rate, []
        self.normalize = input_normalization(input_mean, input_std, in_chans, **dd)
        in_chs = in_chans
        for stage, (out_chs, depth) in enumerate(zip(channels, layers, strict=True), start=1):
            # The pool is the first module of the next stage, so that a level is the map before it, as in timm's VGG.
            modules: list[nn.Module] = [_halve()] if stage > 1 else []
            for _ in range(depth):
                modules.append(_ConvNormAct(OrderedDict(
                    conv=nn.Conv2d(in_chs, out_chs, kernel_size=3, padding=1, **dd),
                    norm=nn.Identity() if norm is None else norm(out_chs, **dd),
                    act=act(inplace=True))))
                in_chs = out_chs
            self.add_module(f'layer{stage}', nn.Sequential(*modules))
            self.feature_info.append(dict(num_chs=out_chs, reduction=2 ** (stage - 1), module=f'layer{stage}'))
        self.pool = _halve()
        self.feature_info.append(dict(num_chs=in_chs, reduction=32, module='pool'))
        self.build_head(in_chs, num_classes, global_pool, **dd)
        self.init_weights()
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the pooled features of the last stage (B, num_features, H/32, W/32), at least 1x1."""
        return self.pool(self.run_stages(self.normalize(x)))


class _ConvNormAct(nn.Sequential):
    """The children `conv`, `norm` and `act` in this order."""

    if TYPE_CHECKING:  # TorchScript would read these annotations at run time
        conv: nn.Module
        norm: nn.Module
        act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if torch.jit.is_scripting():
            return self.act(self.norm(x))
        else:
            return batch_norm_act(x, self.norm, self.act)


def _halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)


default_cfgs = variant_cfgs(_ARCHITECTURES, pixel_cfg('layer1.0.conv', 'fc', pool_size=(1, 1)))
register_variants(CifarVGG, _ARCHITECTURES, __name__)
