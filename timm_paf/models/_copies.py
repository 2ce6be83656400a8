"""Copies of a shared activation in published weights: one copy per place; all copies must be equal."""
import re
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from timm_paf.activations import ParametricActivation, PSoftplus, PSSiLUFixed, paf_modules

__all__ = ['is_activation_key', 'merge_copies', 'refuse']

_NAMES = ('alpha', 'beta')
_BLOCK = re.compile(r'(layer\d+\.\d+)\.')


def is_activation_key(key: str) -> bool:
    """Whether a name in a state dict is the name of an alpha or beta."""
    return key.rsplit('.', 1)[-1] in _NAMES


def merge_copies(weights: Mapping[str, Tensor], model: nn.Module, label: str) -> dict[str, Tensor]:
    """Reduce the copies of alpha and beta in a file to one tensor for each alpha and beta of a model.

    The copies are at our places (`layer1.0.act1`, …) or at the authors' places (`activation` of the network and of
    each block). A file holds all copies of a shared activation, or one.

    Args:
        weights: Names to tensors, under our names except for the activations.
        model: The network that the weights are for.
        label: Name of the model, for messages.

    Returns:
        The weights with alpha and beta under the names of the model's state dict.

    Raises:
        ValueError: If copies differ or are incomplete, or the activation is not the model's.
    """
    found = {key: value for key, value in weights.items() if is_activation_key(key)}
    rest = {key: value for key, value in weights.items() if not is_activation_key(key)}
    modules = list(paf_modules(model))
    names = sorted({key.rsplit('.', 1)[-1] for key in found})
    if found and not modules:
        refuse(label, f'the file has an activation with {" and ".join(names)}, the model has none.')
    if not modules:
        return rest
    authors = any(_place(key).rsplit('.', 1)[-1] == 'activation' for key in found)
    if authors and len(modules) > 1:
        refuse(label, f'the file has one activation for the whole network, the model has {len(modules)}.')
    for first_place, module in modules:
        expected = _authors_places(rest) if authors else _places(model, module)
        tensors = [*dict(module.named_parameters()), *dict(module.named_buffers())]
        learnable = sorted(dict(module.named_parameters()))
        if authors and not set(learnable) <= set(names) <= set(tensors):
            refuse(label, f'the file has an activation with {" and ".join(names)}, the activation of the model, '
                           f'{type(module).__name__}, has {" and ".join(learnable) or "no learned parameter"}.')
        for name in tensors:
            copies = {place: found.pop(f'{place}.{name}') for place in expected if f'{place}.{name}' in found}
            if not copies:
                if authors:  # a constant, which is not in the authors' files
                    rest[f'{first_place}.{name}'] = getattr(module, name)
                elif not names:
                    refuse(label, f'the file has no parametric activation, the model has {type(module).__name__}.')
                continue
            value = _agreed(copies, expected, name, label)
            rest[f'{first_place}.{name}'] = _from_authors(value, module, name, label) if authors else value
    return {**rest, **found}


def _from_authors(value: Tensor, module: ParametricActivation, name: str, label: str) -> Tensor:
    """Convert a parameter of the authors' formula to ours."""
    if isinstance(module, PSSiLUFixed) and name == 'alpha':
        return value.abs().sqrt()  # theirs is sigma(|alpha| x), ours as in the paper sigma(alpha^2 x)
    if isinstance(module, PSoftplus) and not (value > 0).all():
        # theirs takes no absolute value, so it differs below 0
        refuse(label, f'alpha = {value.tolist()}: expected values above 0, where the authors\' PSoftplus equals ours.')
    return value


def _agreed(copies: Mapping[str, Tensor], expected: list[str], name: str, label: str) -> Tensor:
    (first, value), *others = copies.items()
    if 1 < len(copies) < len(expected):
        absent = [f'{place}.{name}' for place in expected if place not in copies]
        refuse(label, f'{len(absent)} of {len(expected)} copies of {name} are missing, such as {absent[0]}; '
                       'expected all or one.')
    for place, other in others:
        if other.shape != value.shape or not torch.allclose(other, value, rtol=0, atol=0, equal_nan=True):
            refuse(label, f'{place}.{name} = {other.flatten()[:4].tolist()} differs from {first}.{name} = '
                           f'{value.flatten()[:4].tolist()}: both are copies of one shared activation.')
    return value


def _place(key: str) -> str:
    return key.rpartition('.')[0]


def _places(model: nn.Module, activation: nn.Module) -> list[str]:
    """All names under which a module is registered."""
    return [
        f'{name}.{child_name}' if name else child_name
        for name, module in model.named_modules()
        for child_name, child in module._modules.items() if child is activation]


def _authors_places(weights: Mapping[str, Tensor]) -> list[str]:
    blocks = dict.fromkeys(match[1] for key in weights if (match := _BLOCK.match(key)))
    return ['activation', *(f'{block}.activation' for block in blocks)]


def refuse(label: str, message: str) -> NoReturn:
    """Raise ValueError with a message about the weights for a model."""
    raise ValueError(f'weights for {label}: {message}')
