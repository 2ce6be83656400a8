"""timm's model interface, implemented once for the networks that timm lacks."""
import re
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import create_classifier
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from timm_paf.activations import shared_activations

__all__ = ['StagedNet']


class StagedNet(nn.Module):
    """Base class of networks that are a chain: feature levels, final norm and activation, `global_pool`, `fc`.

    A subclass registers its children in the order in which they run and lists the feature levels in `feature_info`.
    Its constructor ends with `build_head` and `init_weights`. It defines `forward_features`, since TorchScript cannot
    look children up by name.
    """

    num_feature_levels: int  # length of feature_info
    stem = r'conv1\.'  # regular expression of the beginning of the names of the stem's parameters
    feature_info: list[dict[str, Any]]
    if TYPE_CHECKING:  # TorchScript would read these annotations at run time, and does not know nn.Sequential
        layer1: nn.Sequential
        layer2: nn.Sequential
        layer3: nn.Sequential
        layer4: nn.Sequential
        layer5: nn.Sequential

        def forward_features(self, x: Tensor) -> Tensor: ...

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate, self.grad_checkpointing = 0., False

    def build_head(self, num_features: int, num_classes: int, global_pool: str, **dd: Any) -> None:
        """Register pooling and classifier as the last children; `dd` is their `device` and `dtype`."""
        self.num_classes, self.num_features = num_classes, num_features
        self.global_pool, self.fc = create_classifier(num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He initialisation by fan-out for convolutions, zero for every bias, torch's default for the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into groups, for layer-wise learning rates.

        A shared activation occurs at every depth: it goes into the last group, whose learning rate is not scaled down.
        """
        shared = ''.join(rf'(?!{re.escape(name)}\.)' for name in shared_activations(self))
        block = r'layer(\d+)' if coarse else r'layer(\d+)\.(\d+)'
        return dict(stem=f'^{shared}{self.stem}', blocks=[(f'^{shared}{block}', None), (r'^norm\.', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def stages(self) -> list[nn.Module]:
        """The stages `layer1`, `layer2`, … in the order in which they run."""
        return [child for name, child in self.named_children() if name.startswith('layer')]

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (none for 0 classes), and the pooling unless `global_pool` is None ('' for none)."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        self.build_head(self.num_features, num_classes, pool_type, device=like.device, dtype=like.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def run_stages(self, x: Tensor) -> Tensor:
        """Run the stages `layer1` to `layer3`, `layer4` or `layer5` on the features of the stem."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages(), x, flatten=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        if hasattr(self, 'layer4'):
            x = self.layer4(x)
        if hasattr(self, 'layer5'):
            x = self.layer5(x)
        return x

    def finish(self, x: Tensor) -> Tensor:
        """Turn the last level into the final features."""
        return x

    def forward_intermediates(
            self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
            output_fmt: str = 'NCHW', intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the final features of images (B, C, H, W), and the list of the features of all levels.

        Args:
            x: Images (B, C, H, W).
            indices: Levels to return: all if None, the last n if an int.
            norm: Apply the final norm and activation, if any, to the last level.
            stop_early: Stop after the last of these levels.
            output_fmt: 'NCHW' only.
            intermediates_only: Return only the list of levels.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt = {output_fmt!r}: expected NCHW.')
        take_indices, max_index = feature_take_indices(self.num_feature_levels, indices)
        levels = [info['module'] for info in self.feature_info]
        final = len(levels) - 1
        intermediates = []
        for name, child in self.named_children():  # in the order in which they run
            if self.grad_checkpointing and isinstance(child, nn.Sequential):
                x = checkpoint_seq(child, x)
            else:
                x = child(x)
            if name not in levels:
                continue
            if (index := levels.index(name)) in take_indices:
                intermediates.append(self.finish(x) if norm and index == final else x)
            if index == (max_index if stop_early else final):
                break
        if intermediates_only:
            return intermediates
        return (self.finish(x) if not stop_early or max_index == final else x), intermediates

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Remove the modules that some levels do not need, and return the indices of these levels.

        Args:
            indices: Levels to keep, as for `forward_intermediates`.
            prune_norm: Remove the final norm and activation.
            prune_head: Remove pooling and classifier; always removed when later levels are.
        """
        take_indices, max_index = feature_take_indices(self.num_feature_levels, indices)
        levels = [info['module'] for info in self.feature_info]
        for name in levels[max_index + 1:]:
            setattr(self, name, nn.Sequential())
        ends_early = max_index < len(levels) - 1
        if prune_norm or ends_early:
            for name in {'norm', 'act'} & self._modules.keys():
                setattr(self, name, nn.Identity())
        if ends_early:
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or ends_early:
            self.reset_classifier(0, '')
        return take_indices

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits (B, num_classes), or to the pooled features (B, head_hidden_size)."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
