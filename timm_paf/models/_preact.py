"""Pre-activation residual networks for small images: the common part of PreAct ResNets and wide ResNets.

He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from timm_paf.models._staged import StagedNet
from timm_paf.models._variants import NUM_CLASSES
from timm_paf.models.options import input_normalization, use_same_padding

__all__ = ['PreActBlock', 'PreActNet']


class PreActBlock(nn.Module):
    """norm-act-conv twice around a shortcut; a shortcut with weights starts from the activated input.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the first convolution and of the shortcut.
        act_layer: Activation class or factory.
        norm_layer: Normalisation class.
        drop_path: Rate of stochastic depth.
        first_dilation: Dilation of the first convolution.
        dilation: Dilation of the second convolution.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            stride: int,
            act_layer: Callable[..., nn.Module],
            norm_layer: Callable[..., nn.Module],
            drop_path: float = 0.,
            first_dilation: int = 1,
            dilation: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        conv: Callable[..., nn.Conv2d] = partial(nn.Conv2d, bias=False, **dd)
        self.norm1 = norm_layer(in_chs, **dd)
        self.act1 = act_layer(inplace=True)
        self.conv1 = conv(in_chs, out_chs, 3, stride=stride, padding=first_dilation, dilation=first_dilation)
        self.norm2 = norm_layer(out_chs, **dd)
        self.act2 = act_layer(inplace=True)
        self.conv2 = conv(out_chs, out_chs, 3, padding=dilation, dilation=dilation)
        self.shortcut = conv(in_chs, out_chs, 1, stride=stride) if stride != 1 or in_chs != out_chs else None
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        x = self.conv2(self.act2(self.norm2(self.conv1(activated))))
        return self.drop_path(x) + residual


class PreActNet(StagedNet):
    """A 3x3 convolution, stages `layer1`, `layer2`, … of PreActBlocks, and a final norm and activation.

    Each stage but the first halves the resolution.

    Args:
        stem_chs: Channels of the stem.
        channels: Channels of each stage.
        blocks: Number of blocks of each stage.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: timm's pooling type.
        output_stride: Resolution of the input divided by that of the features: 2 to the number of stages less one (if
            None), half or a quarter of it. Stages beyond it keep the resolution and are dilated.
        act_layer: Activation as a name, class or factory.
        norm_layer: Normalisation as a name or class.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, growing linearly over the blocks.
        input_mean: One number per channel that the network subtracts from its input; None for no normalisation inside.
        input_std: One number per channel by which it then divides.
        pad_type: '' for padding on both sides, 'same' for the padding of `use_same_padding`.

    Raises:
        ValueError: If output_stride or pad_type is none of these, or mean and std do not fit in_chans.
    """

    def __init__(
            self,
            stem_chs: int,
            channels: Sequence[int],
            blocks: Sequence[int],
            *,
            num_classes: int = NUM_CLASSES,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int | None = None,
            act_layer: LayerType = nn.ReLU,
            norm_layer: LayerType = nn.BatchNorm2d,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            input_mean: Sequence[float] | None = None,
            input_std: Sequence[float] | None = None,
            pad_type: str = '',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
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
        self.in_chans = in_chans
        self.drop_rate = drop_rate

        self.normalize = input_normalization(input_mean, input_std, in_chans, **dd)
        self.conv1 = nn.Conv2d(in_chans, stem_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.feature_info = [dict(num_chs=stem_chs, reduction=1, module='conv1')]
        rates = iter(torch.linspace(0, drop_path_rate, sum(blocks), device='cpu').tolist())
        in_chs, reduction, dilation = stem_chs, 1, 1
        for stage, (out_chs, depth) in enumerate(zip(channels, blocks, strict=True), start=1):
            stride, first_dilation = 1, dilation
            if stage > 1 and reduction < output_stride:
                stride = 2
                reduction *= 2
            elif stage > 1:
                dilation *= 2
            layers = []
            for index in range(depth):
                layers.append(PreActBlock(
                    in_chs, out_chs, stride if index == 0 else 1, act, norm, next(rates),
                    first_dilation if index == 0 else dilation, dilation, **dd))
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
        x = self.conv1(self.normalize(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages(), x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            if hasattr(self, 'layer4'):
                x = self.layer4(x)
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))
