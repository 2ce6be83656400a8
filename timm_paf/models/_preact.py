"""Residual networks with pre-activation for small images: what PreAct ResNets and wide ResNets have in common.

He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027.
"""
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer
from torch import Tensor, nn

from timm_paf.models._staged import StagedNet
from timm_paf.models.options import input_normalization, use_same_padding

__all__ = ['PreActBlock', 'PreActNet']


class PreActBlock(nn.Module):
    """norm-act-conv twice around a shortcut; a shortcut with weights starts from the activated input.

    Args:
        in_chs: Channels in.
        out_chs: Channels out.
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
            act_layer: type[nn.Module],
            norm_layer: type[nn.Module],
            drop_path: float = 0.,
            first_dilation: int = 1,
            dilation: int = 1,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        conv3x3 = partial(nn.Conv2d, kernel_size=3, bias=False, **dd)
        self.norm1 = norm_layer(in_chs, **dd)
        self.act1 = act_layer(inplace=True)
        self.conv1 = conv3x3(in_chs, out_chs, stride=stride, padding=first_dilation, dilation=first_dilation)
        self.norm2 = norm_layer(out_chs, **dd)
        self.act2 = act_layer(inplace=True)
        self.conv2 = conv3x3(out_chs, out_chs, padding=dilation, dilation=dilation)
        self.shortcut = None
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False, **dd)
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
        output_stride: Resolution of the input over that of the features: 2 to the number of stages less one, its half
            or its quarter. Stages beyond it keep the resolution and are dilated.
        act_layer: Activation as a name, class or factory.
        norm_layer: Normalisation as a name or class.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, growing linearly over the blocks.
        input_mean: One value a channel that the network subtracts from its input; None for no normalisation inside.
        input_std: One value a channel that it then divides by.
        pad_type: '' for padding on both sides, 'same' for that of `use_same_padding`.

    Raises:
        ValueError: If output_stride is something else, pad_type is neither, or mean and std do not fit in_chans.
    """

    def __init__(
            self,
            stem_chs: int,
            channels: Sequence[int],
            blocks: Sequence[int],
            *,
            num_classes: int,
            in_chans: int,
            global_pool: str,
            output_stride: int,
            act_layer: LayerType,
            norm_layer: LayerType,
            drop_rate: float,
            drop_path_rate: float,
            input_mean: Sequence[float] | None = None,
            input_std: Sequence[float] | None = None,
            pad_type: str = '',
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        if pad_type not in ('', 'same'):
            raise ValueError(f"pad_type = {pad_type!r}: expected '' or 'same'.")
        full = 2 ** (len(channels) - 1)
        if output_stride not in (full, full // 2, full // 4):
            raise ValueError(f'output_stride = {output_stride}: expected {full}, {full // 2} or {full // 4}.')
        dd = {'device': device, 'dtype': dtype}
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
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
                    in_chs, out_chs, stride if index == 0 else 1, act_layer, norm_layer, next(rates),
                    first_dilation if index == 0 else dilation, dilation, **dd))
                in_chs = out_chs
            self.add_module(f'layer{stage}', nn.Sequential(*layers))
            self.feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f'layer{stage}'))
        self.norm = norm_layer(in_chs, **dd)
        self.act = act_layer(inplace=True)
        self.build_head(in_chs, num_classes, global_pool, **dd)
        self.init_weights()
        if pad_type == 'same':
            use_same_padding(self)

    def finish(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))
