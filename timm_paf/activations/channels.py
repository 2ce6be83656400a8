"""Number and dimension of the channels at each activation of a network."""
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from timm_paf.activations.sites import Site

__all__ = ['channels_of']


def channels_of(model: nn.Module, places: list[Site], example: Tensor | None) -> dict[str, dict[str, int]]:
    """Find the channels at each place with one forward pass in eval mode.

    The channels of an activation are in the same dimension as those of the last layer before it: 1 after a
    convolution, the last after a linear layer.

    Args:
        model: Any network; unchanged afterwards.
        places: Activations, as modules or functions kept as attributes.
        example: Input for the pass; None for zeros of the size in a timm model's `pretrained_cfg`.

    Returns:
        Name of each place to the arguments `num_parameters` and `channel_dim` of its activation.

    Raises:
        ValueError: If there is no input, a place did not run, or one module is at places with different channels.
    """
    example = _example(model) if example is None else example
    latest: dict[int, int] = {}  # number of dimensions -> dimension of the channels in the last layer's output
    found: dict[nn.Module, list[tuple[int, int]]] = {site.module: [] for site in places}

    def at_layer(dim: int, *tensors: Any) -> None:
        latest.update({tensor.dim(): dim for tensor in tensors if isinstance(tensor, Tensor)})

    def at_activation(activation: nn.Module, x: Tensor) -> None:
        guess = latest.get(x.dim(), 1 if x.dim() in (4, 5) else -1)  # (B, N, C) otherwise
        dim = 1 if x.dim() == 2 else guess
        if (x.shape[dim], dim) not in found[activation]:
            found[activation].append((x.shape[dim], dim))

    with ExitStack() as cleanup:
        for module in model.modules():
            cleanup.callback(setattr, module, 'training', module.training)
            dim = _channel_dim(module)
            if dim is not None:  # noted before the layer as well: a norm-act layer runs its activation inside
                cleanup.callback(module.register_forward_pre_hook(
                    lambda m, inputs, dim=dim: at_layer(dim, *inputs)).remove)
                cleanup.callback(module.register_forward_hook(
                    lambda m, inputs, output, dim=dim: at_layer(dim, output)).remove)
        for site in {site.module: site for site in places}.values():
            if site.attribute in site.parent._modules:
                cleanup.callback(site.module.register_forward_pre_hook(
                    lambda module, inputs: at_activation(module, inputs[0])).remove)
                continue
            function = getattr(site.parent, site.attribute)

            def observed(x: Tensor, *args: Any, site: Site = site, function: Any = function, **kwargs: Any) -> Any:
                at_activation(site.module, x)
                return function(x, *args, **kwargs)

            cleanup.callback(setattr, site.parent, site.attribute, function)
            setattr(site.parent, site.attribute, observed)
        model.eval()
        with torch.no_grad():
            model(example)
    for site in places:
        seen = [count for count, _ in found[site.module]]
        if len(seen) != 1:
            reason = f'is one module for {" and ".join(map(str, seen))} channels' if seen else (
                'did not run in the forward pass, so the number of channels is unknown')
            raise ValueError(
                f"sharing = 'channel': {site.name} {reason}; leave it out with match=..., or use sharing='layer'.")
    return {
        site.name: dict(zip(('num_parameters', 'channel_dim'), found[site.module][0], strict=True)) for site in places}


def _example(model: nn.Module) -> Tensor:
    size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
    if size is None:
        raise ValueError(
            "sharing = 'channel' needs the number of channels at each place; pass example_input, a batch for one "
            'forward pass.')
    parameter = next(model.parameters())
    return torch.zeros((2, *size), device=parameter.device, dtype=parameter.dtype)


def _channel_dim(module: nn.Module) -> int | None:
    """Dimension of the channels in a layer's output; None for other modules."""
    if isinstance(module, (_ConvNd, _NormBase, nn.GroupNorm)) or type(module).__name__.endswith('2d'):
        return 1  # timm's LayerNorm2d derives from nn.LayerNorm and has its channels second
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else None
