"""What some published networks do otherwise: normalise their input inside, and pad strided convolutions as JAX does.

Both show in the state dict (`normalize.mean`, `….conv1.same.weight`), so that weights trained with one of them are not
taken for weights trained without.
"""
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

__all__ = [
    'InputNormalization', 'has_same_padding', 'input_normalization', 'network_options', 'use_same_padding',
]


class InputNormalization(nn.Module):
    """(x - mean) / std for each channel: the first layer of a network that takes pixels in [0, 1].

    Args:
        mean: One value a channel.
        std: One value a channel, above 0.

    Raises:
        ValueError: If the lengths differ, or a std is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device=None, dtype=None) -> None:
        super().__init__()
        mean, std = [float(value) for value in mean], [float(value) for value in std]
        if len(mean) != len(std) or not mean:
            raise ValueError(f'mean = {mean}, std = {std}: expected one value of each for every channel.')
        if not all(value > 0 for value in std):
            raise ValueError(f'std = {std}: expected values above 0.')
        self.register_buffer('mean', torch.tensor(mean, device=device, dtype=dtype).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std, device=device, dtype=dtype).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        if self.mean.is_meta:
            return f'{len(self.mean)} channels'
        return ', '.join(
            f'{name}=({", ".join(f"{value:.4g}" for value in getattr(self, name).flatten().tolist())})'
            for name in ('mean', 'std'))


def input_normalization(
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        in_chans: int,
        device=None,
        dtype=None,
) -> nn.Module:
    """The first layer of a network: `InputNormalization`, or the identity if neither mean nor std is given.

    Args:
        mean: One value a channel, or None.
        std: One value a channel, or None.
        in_chans: Number of channels.

    Raises:
        ValueError: If only one of them is given, or their length is not `in_chans`.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError(f'input_mean = {mean}, input_std = {std}: expected both, or neither.')
    layer = InputNormalization(mean, std, device=device, dtype=dtype)
    if len(layer.mean) != in_chans:
        raise ValueError(
            f'input_mean and input_std have {len(layer.mean)} values, in_chans = {in_chans}: expected one a channel.')
    return layer


def use_same_padding(model: nn.Module) -> None:
    """Pad the strided k x k convolutions of a network as SAME does in JAX and TensorFlow, k > 1.

    For a 3x3 convolution of stride 2 on an even size that is one row below and one column to the right, where PyTorch's
    usual padding=1 puts one on each side; the windows lie one pixel apart. Weights stay as they are; under their
    new names `….same.weight`.

    Args:
        model: Changed in place. Convolutions with that padding already are left alone.
    """
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv2d) or isinstance(conv, Conv2dSame):
            continue
        if max(conv.kernel_size) == 1 or max(conv.stride) == 1:
            continue
        same = Conv2dSame(
            conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, dilation=conv.dilation,
            groups=conv.groups, bias=conv.bias is not None, device='meta')  # its own weights are not wanted
        same.weight, same.bias = conv.weight, conv.bias
        model.set_submodule(name, nn.Sequential(OrderedDict(same=same)).train(conv.training))


def has_same_padding(model: nn.Module) -> bool:
    """Whether a network was built or changed by `use_same_padding`."""
    return any(isinstance(module, Conv2dSame) and name.endswith('.same') for name, module in model.named_modules())


def network_options(model: nn.Module) -> dict[str, Any]:
    """The constructor arguments that rebuild these two traits of a network; empty if it has neither."""
    options: dict[str, Any] = {}
    if has_same_padding(model):
        options['pad_type'] = 'same'
    normalize = getattr(model, 'normalize', None)
    if isinstance(normalize, InputNormalization):
        options['input_mean'] = normalize.mean.flatten().tolist()
        options['input_std'] = normalize.std.flatten().tolist()
    return options
