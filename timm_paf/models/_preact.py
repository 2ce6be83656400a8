"""Pre-activation residual networks for small images: the common part of PreAct ResNets and wide ResNets.

He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer
from torch import Tensor, nn

from timm_paf.kernels import batch_norm_act
from timm_paf.models._staged import StagedNet
from timm_paf.models._variants import NUM_CLASSES
from timm_paf.models.options import input_normalization, use_same_padding

__all__ = ['PreActBlock', 'PreActNet']


class PreActBlock(nn.Module):
    """norm-act-conv twice around a shortcut; a shortcut with weights starts from the activated input."""

    def __init__(
            self, in_chs: int, out_chs: int, stride: int, dilations: tuple[int, int],
            act_layer: Callable[..., nn.Module], norm_layer: Callable[..., nn.Module], drop_path: float, **dd: Any,
    ) -> None:
        super().__init__()
        conv: Callable[..., nn.Conv2d] = partial(nn.Conv2d, bias=False, **dd)
        first, second = dilations
        self.norm1 = norm_layer(in_chs, **dd)
        self.act1 = act_layer(inplace=True)
        self.conv1 = conv(in_chs, out_chs, 3, stride=stride, padding=first, dilation=first)
        self.norm2 = norm_layer(out_chs, **dd)
        self.act2 = act_layer(inplace=True)
        self.conv2 = conv(out_chs, out_chs, 3, padding=second, dilation=second)
        self.shortcut = conv(in_chs, out_chs, 1, stride=stride) if stride != 1 or in_chs != out_chs else None
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            activated = self.act1(self.norm1(x))
        else:
            activated = batch_norm_act(x, self.norm1, self.act1)
        residual = x if self.shortcut is None else self.shortcut(activated)
        x = self.conv1(activated)
        if torch.jit.is_scripting():
            x = self.act2(self.norm2(x))
        else:
            x = batch_norm_act(x, self.norm2, self.act2)
        return self.drop_path(self.conv2(x)) + residual


class PreActNet(StagedNet):
    """A 3x3 convolution, stages `layer1`, `layer2`, … of PreActBlocks, and a final norm and activation.

    Each stage but the first halves the resolution, down to `output_stride`; later stages are dilated instead.

    Args:
        stem_chs: Channels of the stem.
        channels: Channels of each stage.
        blocks: Number of blocks of each stage.
        output_stride: Resolution of the input divided by that of the features: 2 to the number of stages less one (if
            None), or half or a quarter of it.
        pad_type: '' for padding on both sides, 'same' for the padding of `use_same_padding`.

    The other arguments are those of `timm_paf.models.PreActResNet`.

    Raises:
        ValueError: If output_stride or pad_type is none of these, or mean and std do not fit in_chans.
    """

    def __init__(
            self, stem_chs: int, channels: Sequence[int], blocks: Sequence[int], *,
            num_classes: int = NUM_CLASSES, in_chans: int = 3, global_pool: str = 'avg',
            output_stride: int | None = None,
            act_layer: LayerType = nn.ReLU, norm_layer: LayerType = nn.BatchNorm2d,
            drop_rate: float = 0., drop_path_rate: float = 0.,
            input_mean: Sequence[float] | None = None, input_std: Sequence[float] | None = None, pad_type: str = '',
            device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pad_type not in ('', 'same'):
            raise ValueError(f"pad_type = {pad_type!r}: expected '' or 'same'.")
        full = 2 ** (len(channels) - 1)
        output_stride = full if output_stride is None else output_stride
        if output_stride not in (full, full // 2, full // 4):
            raise ValueError(f'output_stride = {output_stride}: expected {full}, {full // 2} or {full // 4}.')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
        assert act is not None and norm is not None
        self.in_chans, self.drop_rate = in_chans, drop_rate

        self.normalize = input_normalization(input_mean, input_std, in_chans, **dd)
        self.conv1 = nn.Conv2d(in_chans, stem_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.feature_info = [dict(num_chs=stem_chs, reduction=1, module='conv1')]
        rates = iter(torch.linspace(0, drop_path_rate, sum(blocks), device='cpu').tolist())
        in_chs, reduction, dilation = stem_chs, 1, 1
        for stage, (out_chs, depth) in enumerate(zip(channels, blocks, strict=True), start=1):
            stride, before = 1, dilation
            if stage > 1 and reduction < output_stride:
                stride, reduction = 2, 2 * reduction
            elif stage > 1:
                dilation *= 2
            layers = [PreActBlock(in_chs, out_chs, stride, (before, dilation), act, norm, next(rates), **dd)]
            for _ in range(1, depth):
                layers.append(PreActBlock(out_chs, out_chs, 1, (dilation, dilation), act, norm, next(rates), **dd))
            in_chs = out_chs
            self.add_module(f'layer{stage}', nn.Sequential(*layers))
            self.feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f'layer{stage}'))
        self.norm = norm(in_chs, **dd)
        self.act = act(inplace=True)
        self.build_head(in_chs, num_classes, global_pool, **dd)
        self.init_weights()
        if pad_type == 'same':
            use_same_padding(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activated features (B, num_features, H/output_stride, W/output_stride)."""
        return self.finish(self.run_stages(self.conv1(self.normalize(x))))

    def finish(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.act(self.norm(x))
        else:
            return batch_norm_act(x, self.norm, self.act)
