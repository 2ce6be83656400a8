"""How many channels pass through each activation of a network, and along which dimension."""
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from timm_paf.activations.sites import Site

__all__ = ['channels_of']


def channels_of(model: nn.Module, places: list[Site], example: Tensor | None) -> dict[str, dict[str, int]]:
    """Number and dimension of the channels at each place, from one forward pass in eval mode.

    An activation's channels run along the dimension that the last layer before it wrote its own along: 1 after a
    convolution, the last after a linear layer.

    Args:
        model: Any network; left as it was.
        places: Activations, as modules or functions kept as attributes.
        example: Input for the pass; None takes zeros of the size in a timm model's `pretrained_cfg`.

    Returns:
        Name of the place to the arguments `num_parameters` and `channel_dim` of its activation.

    Raises:
        ValueError: If there is no input, a place did not run, or one module stands at places with different channels.
    """
    watch = _Watch()
    handles = [handle for module in model.modules() for handle in watch.layer(module)]
    functions = [site for site in places if site.attribute not in site.parent._modules]
    kept = [getattr(site.parent, site.attribute) for site in functions]
    modes = {module: module.training for module in model.modules()}
    example = _example(model) if example is None else example
    try:
        for site, function in zip(functions, kept, strict=True):
            setattr(site.parent, site.attribute, _noting(function, partial(watch.activation, site)))
        for site in {id(site.module): site for site in places if site not in functions}.values():
            handles.append(site.module.register_forward_pre_hook(partial(_first, watch.activation, site)))
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for site, function in zip(functions, kept, strict=True):
            setattr(site.parent, site.attribute, function)
        for module, mode in modes.items():
            module.training = mode
    missing = [site.name for site in places if id(site.module) not in watch.found]
    if missing:
        raise ValueError(
            f"sharing = 'channel': {', '.join(missing[:3])} did not run in the forward pass, so the number of channels "
            "is unknown; leave these places out with match=..., or use sharing='layer'.")
    for site in places:
        if len(watch.found[id(site.module)]) > 1:
            counts = ' and '.join(str(count) for count, _ in watch.found[id(site.module)])
            raise ValueError(
                f"sharing = 'channel': {site.name} is one module for {counts} channels; leave it out with match=..., "
                "or use sharing='layer'.")
    return {
        site.name: dict(zip(('num_parameters', 'channel_dim'), watch.found[id(site.module)][0], strict=True))
        for site in places}


def _example(model: nn.Module) -> Tensor:
    size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
    if size is None:
        raise ValueError(
            "sharing = 'channel' needs the number of channels at each place; pass example_input, a batch for one "
            'forward pass.')
    parameter = next(model.parameters())
    return torch.zeros((2, *size), device=parameter.device, dtype=parameter.dtype)


def _layout(module: nn.Module) -> int | None:
    """The dimension of the channels in a layer's output; None if the layer does not say."""
    if isinstance(module, (_ConvNd, _NormBase, nn.GroupNorm)) or type(module).__name__.endswith('2d'):
        return 1  # timm's LayerNorm2d derives from nn.LayerNorm and keeps channels second
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm)) else None


class _Watch:
    """What a forward pass tells about layouts."""

    def __init__(self) -> None:
        self.found: dict[int, list[tuple[int, int]]] = {}  # by the id of an activation
        self.written: dict[int, tuple[Tensor, int]] = {}  # tensors are kept so that an id is not used twice
        self.latest: dict[int, int] = {}  # by the number of dimensions, where the tensor itself is none that we know

    def layer(self, module: nn.Module) -> list[Any]:
        """Hooks for one module of the network."""
        layout = _layout(module)

        def before(_: nn.Module, inputs: tuple) -> None:  # a norm-act layer runs its activation inside
            if layout is not None and inputs and isinstance(inputs[0], Tensor):
                self.latest[inputs[0].dim()] = layout

        def after(_: nn.Module, inputs: tuple, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            dim = layout
            if dim is None and inputs and id(inputs[0]) in self.written and not list(module.children()):
                same = isinstance(inputs[0], Tensor) and inputs[0].dim() == output.dim()
                dim = self.written[id(inputs[0])][1] if same else None  # dropout, identity: as what came in
            if dim is not None:
                self.written[id(output)] = (output, dim)
                self.latest[output.dim()] = dim

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def activation(self, site: Site, inputs: tuple) -> None:
        """Note one call of an activation."""
        x = inputs[0]
        guess = self.latest.get(x.dim(), 1 if x.dim() in (2, 4, 5) else -1)  # (B, N, C) otherwise
        dim = self.written[id(x)][1] if id(x) in self.written else guess
        dim = 1 if x.dim() == 2 else dim
        seen = self.found.setdefault(id(site.module), [])
        if (x.shape[dim], dim) not in seen:
            seen.append((x.shape[dim], dim))


def _first(note: Callable, site: Site, _: nn.Module, inputs: tuple) -> None:
    note(site, inputs)


def _noting(function: Callable, note: Callable[[tuple], None]) -> Callable:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        note(args)
        return function(*args, **kwargs)
    return wrapped
