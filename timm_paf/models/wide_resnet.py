"""Wide residual networks with pre-activation for small images.

Zagoruyko and Komodakis, arXiv 1605.07146; WRN-d-k has (d - 4)/6 blocks a stage and k times the base widths 16, 32, 64.
"""
from functools import partial
from typing import Any, Optional, Union

import torch
from timm.layers import DropPath, LayerType, create_classifier, get_act_layer, get_norm_layer
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from ._variants import cifar_cfg, register_variants, variant_cfgs

__all__ = ['WideResNet']

_ARCHITECTURES = {
    'wrn10_2': dict(depth=10, widen_factor=2),
    'wrn28_10': dict(depth=28, widen_factor=10),
}


class PreActBlock(nn.Module):
    """norm-act-conv twice around a shortcut; a shortcut with weights starts from the activated input.

    Args:
        in_chs: Channels in.
        out_chs: Channels out.
        stride: Stride of the first convolution and of the shortcut.
        act_layer: Activation class or factory.
        norm_layer: Normalisation class.
        drop_path: Rate of stochastic depth.
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            stride: int,
            act_layer: type[nn.Module],
            norm_layer: type[nn.Module],
            drop_path: float = 0.,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False, **dd)
        self.norm1 = norm_layer(in_chs, **dd)
        self.act1 = act_layer(inplace=True)
        self.conv1 = conv3x3(in_chs, out_chs, stride=stride)
        self.norm2 = norm_layer(out_chs, **dd)
        self.act2 = act_layer(inplace=True)
        self.conv2 = conv3x3(out_chs, out_chs)
        self.shortcut = None
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        x = self.conv2(self.act2(self.norm2(self.conv1(activated))))
        return self.drop_path(x) + residual


class WideResNet(nn.Module):
    """WRN-depth-widen_factor for inputs (B, in_chans, H, W) of any size from 8x8 on.

    Args:
        depth: 6 n + 4 with n blocks in each of the three stages.
        widen_factor: Factor on the base widths 16, 32 and 64.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: timm's pooling type.
        act_layer: Activation as a name, class or factory.
        norm_layer: Normalisation as a name or class.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, growing linearly over the blocks.

    Raises:
        ValueError: If depth is not 6 n + 4.
    """

    num_feature_levels = 4
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
            self,
            depth: int = 28,
            widen_factor: int = 10,
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            act_layer: LayerType = nn.ReLU,
            norm_layer: LayerType = nn.BatchNorm2d,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth = {depth}: expected 6 n + 4 with n >= 1, such as 10, 28, 34 or 70.')
        dd = {'device': device, 'dtype': dtype}
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, 16, kernel_size=3, padding=1, bias=False, **dd)
        self.feature_info: list[dict[str, Any]] = [dict(num_chs=16, reduction=1, module='conv1')]
        blocks = (depth - 4) // 6
        rates = torch.linspace(0, drop_path_rate, 3 * blocks, device='cpu').tolist()
        in_chs, reduction = 16, 1
        for stage in range(3):
            out_chs = 16 * widen_factor * 2 ** stage
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                rate = rates[stage * blocks + index]
                layers.append(PreActBlock(in_chs, out_chs, stride, act_layer, norm_layer, rate, **dd))
                in_chs, reduction = out_chs, reduction * stride
            self.add_module(f'layer{stage + 1}', nn.Sequential(*layers))
            self.feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f'layer{stage + 1}'))
        self.norm = norm_layer(in_chs, **dd)
        self.act = act_layer(inplace=True)
        self.num_features = in_chs
        self.global_pool, self.fc = create_classifier(in_chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He initialisation by fan-out for convolutions, zero bias for the classifier, as in the published networks."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into groups, for layer-wise learning rates."""
        return dict(
            stem=r'^conv1',
            blocks=[(r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)', None), (r'^norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> Union[str, nn.Module]:
        """The classifier, or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Put a new classifier in place, and a new pooling if one is named."""
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, device=self.conv1.weight.device,
            dtype=self.conv1.weight.dtype)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: Union[int, list[int], None] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """Features of the stem and the stages, beside the final features.

        Args:
            x: Images (B, C, H, W).
            indices: Levels to return: all if None, the last n if an int.
            norm: Apply the final norm and activation to the last level.
            stop_early: Run no further than the last level asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: Return the list alone.

        Returns:
            The final features and the list of levels, or the list.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt = {output_fmt!r}: expected NCHW.')
        take_indices, max_index = feature_take_indices(self.num_feature_levels, indices)
        intermediates = []
        stages: list[nn.Module] = [self.conv1, self.layer1, self.layer2, self.layer3]
        final = len(stages) - 1
        for index, stage in enumerate(stages[:max_index + 1] if stop_early else stages):
            if index > 0 and self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint_seq(stage, x)
            else:
                x = stage(x)
            if index in take_indices:
                intermediates.append(self.act(self.norm(x)) if norm and index == final else x)
        if intermediates_only:
            return intermediates
        if not stop_early or max_index == final:
            x = self.act(self.norm(x))
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: Union[int, list[int]] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Remove what the levels asked for do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(self.num_feature_levels, indices)
        final = self.num_feature_levels - 1
        for index in range(max_index + 1, final + 1):
            setattr(self, f'layer{index}', nn.Sequential())
        if prune_norm or max_index < final:
            self.norm, self.act = nn.Identity(), nn.Identity()
        if max_index < final:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < final:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the activated features (B, C, H/4, W/4)."""
        x = self.conv1(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.act(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits (B, num_classes), or to the pooled features."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


default_cfgs = variant_cfgs(_ARCHITECTURES, cifar_cfg('conv1', 'fc', pool_size=(8, 8)))
register_variants(WideResNet, _ARCHITECTURES, __name__)
