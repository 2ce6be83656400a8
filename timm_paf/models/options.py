"""Two options of published networks: input normalisation inside the network, and JAX's padding of strided convolutions.

Both show in the state dict (`normalize.mean`, `….conv1.same.weight`), so that weights trained with an option are not
mistaken for weights trained without it.
"""
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import Conv2dSame
from torch import nn

from timm_paf._normalized import InputNormalization, normalization_of

__all__ = ['has_same_padding', 'input_normalization', 'network_options', 'use_same_padding']


def input_normalization(
        mean: Sequence[float] | None, std: Sequence[float] | None, in_chans: int,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
) -> InputNormalization | nn.Identity:
    """The first layer of a network of `in_chans` channels: `InputNormalization`, or the identity for None and None.

    Raises:
        ValueError: If only one of mean and std is given, or their length is not `in_chans`.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError(f'input_mean = {mean}, input_std = {std}: expected both, or neither.')
    layer = InputNormalization(mean, std, device=device, dtype=dtype)
    if len(layer.mean) != in_chans:
        raise ValueError(
            f'input_mean and input_std have {len(layer.mean)} values, in_chans = {in_chans}: expected one per channel.')
    return layer


def use_same_padding(model: nn.Module) -> None:
    """Pad the strided k x k convolutions of a network (k > 1) as 'SAME' does in JAX and TensorFlow.

    For a 3x3 convolution of stride 2 on an even size, 'SAME' adds one row below and one column to the right; PyTorch's
    usual padding=1 adds one on each side, so that the windows lie one pixel apart. The model changes in place; the
    weights do not change, but their names become `….same.weight`.
    """
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or isinstance(conv, Conv2dSame) or 1 in (
                max(conv.kernel_size), max(conv.stride)):
            continue
        same = Conv2dSame(
            conv.in_channels, conv.out_channels, cast(Any, conv.kernel_size), cast(Any, conv.stride),
            dilation=cast(Any, conv.dilation), groups=conv.groups, bias=conv.bias is not None,
            device='meta')  # its own weights are replaced
        same.weight, same.bias = conv.weight, conv.bias
        model.set_submodule(name, nn.Sequential(OrderedDict(same=same)).train(conv.training))


def has_same_padding(model: nn.Module) -> bool:
    """Whether `use_same_padding` changed a network."""
    return any(isinstance(module, Conv2dSame) and name.endswith('.same') for name, module in model.named_modules())


def network_options(model: nn.Module) -> dict[str, Any]:
    """The constructor arguments for the two options of a network; empty if it uses neither."""
    options: dict[str, Any] = {'pad_type': 'same'} if has_same_padding(model) else {}
    if (normalize := normalization_of(model)) is not None:
        options['input_mean'] = normalize.mean.flatten().tolist()
        options['input_std'] = normalize.std.flatten().tolist()
    return options
