"""Copies of a shared activation in published weights: one copy per place; all copies must be equal."""
import re
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from timm_paf.activations import PSoftplus, paf_modules
from timm_paf.activations.sites import module_sites

__all__ = ['merge_copies', 'refuse']


def refuse(label: str, message: str) -> NoReturn:
    """Raise ValueError with a message about the weights for a model."""
    raise ValueError(f'weights for {label}: {message}')


def merge_copies(weights: Mapping[str, Tensor], model: nn.Module, label: str) -> dict[str, Tensor]:
    """Reduce the copies of alpha and beta in a file to one tensor for each alpha and beta of a model.

    Other names are ours already. The copies are at our places (`layer1.0.act1`, …) or at the authors' (`activation` of
    the network and of each block). A file holds all copies of a shared activation, or one.

    Raises:
        ValueError: If copies differ or are incomplete, or the activation is not the model's.
    """
    modules = list(paf_modules(model))
    # other modules may have an alpha or beta as well, such as ResMLP's
    others = model.state_dict().keys() - {
        f'{place}.{name}' for place, module in modules for name in module.state_dict()}
    found: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, value in weights.items():
        (found if key.rsplit('.', 1)[-1] in ('alpha', 'beta') and key not in others else rest)[key] = value
    names = {key.rsplit('.', 1)[-1] for key in found}
    in_file = f'the file has an activation with {" and ".join(sorted(names))}'
    if found and not modules:
        refuse(label, f'{in_file}, the model has none.')
    authors = any(key.split('.')[-2:-1] == ['activation'] for key in found)
    if authors and len(modules) > 1:
        refuse(label, f'the file has one activation for the whole network, the model has {len(modules)}.')
    for first_place, module in modules:
        places = _authors_places(rest) if authors else [
            site.name for site in module_sites(model, lambda child: True) if site.module is module]
        learnable = {name for name, _ in module.named_parameters()}
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        if authors and not learnable <= names <= tensors.keys():
            refuse(label, f'{in_file}, the activation of the model, {type(module).__name__}, has '
                          f'{" and ".join(sorted(learnable)) or "no learned parameter"}.')
        for name, tensor in tensors.items():
            copies = {key: found.pop(key) for place in places if (key := f'{place}.{name}') in found}
            if copies:
                value = _agreed(copies, [f'{place}.{name}' for place in places], label)
                rest[f'{first_place}.{name}'] = value
                if authors and isinstance(module, PSoftplus) and not (value > 0).all():
                    # theirs takes no absolute value, so it differs below 0
                    refuse(label, f'alpha = {value.tolist()}: expected values above 0, where the authors\' PSoftplus '
                                  'equals ours.')
            elif authors:  # a constant, which is not in the authors' files
                rest[f'{first_place}.{name}'] = tensor
            elif not names:
                refuse(label, f'the file has no parametric activation, the model has {type(module).__name__}.')
    return {**rest, **found}


def _agreed(copies: Mapping[str, Tensor], expected: list[str], label: str) -> Tensor:
    """The value that all copies have."""
    absent = [key for key in expected if key not in copies]
    if absent and len(copies) > 1:
        name = absent[0].rsplit('.', 1)[-1]
        refuse(label, f'{len(absent)} of {len(expected)} copies of {name} are missing, such as {absent[0]}; '
                      'expected all or one.')
    (first, value), *others = copies.items()
    for key, other in others:
        if other.shape != value.shape or not torch.allclose(other, value, rtol=0, atol=0, equal_nan=True):
            refuse(label, f'{key} = {other.flatten()[:4].tolist()} differs from {first} = '
                          f'{value.flatten()[:4].tolist()}: both are copies of one shared activation.')
    return value


def _authors_places(weights: Mapping[str, Tensor]) -> list[str]:
    blocks = dict.fromkeys(match[1] for key in weights if (match := re.match(r'(layer\d+\.\d+)\.', key)))
    return ['activation', *(f'{block}.activation' for block in blocks)]
