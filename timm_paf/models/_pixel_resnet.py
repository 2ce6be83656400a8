"""timm's ResNet for pixels in [0, 1]: the common part of the ResNets for small and for large images."""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.models._manipulate import checkpoint_seq
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from timm_paf.kernels import batch_norm_act, runs_as_written
from timm_paf.models.options import input_normalization

__all__ = ['PixelResNet']


class _Block(nn.Module):
    """A residual block of timm that computes each norm and the activation after it in one pass.

    Where something comes between norm and activation, under hooks, in graphs and scripts, timm's `forward` runs.
    """

    if TYPE_CHECKING:
        drop_block: Any
        aa: Any
        convolutions: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if not (runs_as_written(x, self, self.drop_block, self.aa) and self.se is None
                and (type(self.drop_block) is nn.Identity or not self.drop_block.training)
                and type(self.aa) is nn.Identity and (self.drop_path is None or not self.drop_path.training)):
            return super().__call__(*args, **kwargs)
        shortcut, shortcut_norm = x, None
        for i in range(1, self.convolutions):
            x = batch_norm_act(getattr(self, f'conv{i}')(x), getattr(self, f'bn{i}'), getattr(self, f'act{i}'))
        conv, norm, act = (getattr(self, f'{part}{self.convolutions}') for part in ('conv', 'bn', 'act'))
        x = conv(x)
        if type(self.downsample) is nn.Sequential and len(self.downsample) and runs_as_written(x, self.downsample):
            *others, shortcut_norm = self.downsample
            for module in others:
                shortcut = module(shortcut)
        elif self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return batch_norm_act(x, norm, act, shortcut, shortcut_norm)


class _BasicBlock(_Block, BasicBlock):
    convolutions = 2


class _Bottleneck(_Block, Bottleneck):
    convolutions = 3


_BLOCKS = {BasicBlock: _BasicBlock, Bottleneck: _Bottleneck}


class PixelResNet(ResNet):
    """timm's ResNet, with a module for the normalisation of the input and one for the features of the stem.

    timm reads these features at `act1`. A shared `act1` runs many times, so that an extractor with hooks or a traced
    graph would read the output of another call.

    Args:
        block: Residual block class of timm.models.resnet.
        layers: Number of blocks of each stage.
        input_mean, input_std: One number per channel for normalisation inside.
        **kwargs: As timm's ResNet.

    Raises:
        ValueError: If mean and std do not fit in_chans.
    """

    num_feature_levels = 5
    feature_info: list[dict[str, Any]]
    if TYPE_CHECKING:  # TorchScript would read these annotations at run time, and does not know nn.Sequential
        layer1: nn.Sequential
        layer2: nn.Sequential
        layer3: nn.Sequential
        layer4: nn.Sequential

    def __init__(
            self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], *, in_chans: int = 3,
            input_mean: Sequence[float] | None = None, input_std: Sequence[float] | None = None, **kwargs: Any,
    ) -> None:
        super().__init__(cast(Any, _BLOCKS.get(block, block)), layers, in_chans=in_chans, **kwargs)
        self.normalize = input_normalization(input_mean, input_std, in_chans, kwargs.get('device'), kwargs.get('dtype'))
        self.stem_features = nn.Identity()
        self.feature_info[0]['module'] = 'stem_features'
        # extractors that rebuild a network run its children in order
        stem = ('normalize', 'conv1', 'bn1', 'act1', 'stem_features')
        for name in (*stem, *(name for name in self._modules if name not in stem)):
            self._modules[name] = self._modules.pop(name)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, num_features, H/output_stride, W/output_stride)."""
        x = self.conv1(self.normalize(x))
        if torch.jit.is_scripting():
            x = self.act1(self.bn1(x))
        else:
            x = batch_norm_act(x, self.bn1, self.act1)
        x = self.maxpool(self.stem_features(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's ResNet, for images (B, C, H, W)."""
        return super().forward_intermediates(self.normalize(x), *args, **kwargs)
