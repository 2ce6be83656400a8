"""Weights cast to the dtype of autocast once per attack instead of once per step."""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from timm_paf.attacks.compiled import CompiledModel

__all__ = ['autocast_dtype', 'autocast_weights', 'call_with', 'is_compiled', 'with_cast_weights']


def with_cast_weights(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as a function with its present weights, cast once; the model itself without autocast.

    Autocast keeps a cast weight only if it requires a gradient, so it would cast frozen weights in every call.
    """
    dtype = autocast_dtype(model)
    if dtype is None or any(is_compiled(module) for module in model.modules()):
        return model
    return call_with(model, {name: weight.detach().to(dtype) for name, weight in autocast_weights(model)})


def call_with(model: nn.Module, weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The model as a function, with these tensors in place of its weights of these names."""
    return (lambda x: torch.func.functional_call(model, weights, (x,))) if weights else model


def autocast_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of autocast on the model's device; None without autocast."""
    device = next(model.parameters(), torch.empty(0)).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def autocast_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights that autocast casts at every call: those of plain convolutions and linear maps.

    Subclasses may compute with the weight in float32 first, so theirs are left alone. Each weight has one name.
    """
    plain = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear
    for name, parameter in model.named_parameters():
        place, _, own = name.rpartition('.')
        if type(model.get_submodule(place)) in plain and own in ('weight', 'bias') and parameter.dtype == torch.float32:
            yield name, parameter


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled by torch; its parts may be although it is not."""
    return isinstance(module, CompiledModel) or '_orig_mod' in module._modules or (
        module._compiled_call_impl is not None)
