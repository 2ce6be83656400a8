"""Places of activations in a network: modules, functions kept as attributes, and calls in methods."""
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from timm.layers import activations as timm_activations
from timm.layers import activations_me
from torch import nn
from torch.nn import functional as F

from timm_paf.activations.modules import ParametricActivation, Softplus

__all__ = [
    'ACTIVATION_TYPES', 'GATE_TYPES', 'FUNCTIONS', 'Site', 'attribute_sites', 'function_calls', 'module_sites',
    'nearest_type', 'stages', 'unreachable_sites',
]


def _timm_classes(*names: str) -> tuple[type[nn.Module], ...]:
    found = [getattr(module, name, None) for module in (timm_activations, activations_me) for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


# activations between layers
ACTIVATION_TYPES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, Softplus,
    *_timm_classes(
        'Swish', 'Mish', 'PReLU', 'HardSwish', 'HardMish', 'GELU', 'GELUTanh', 'QuickGELU', 'SwishMe', 'MishMe',
        'HardSwishMe', 'HardMishMe'))
# gates and attention: another function there would be another network
GATE_TYPES: tuple[type[nn.Module], ...] = (
    nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softmax, nn.GLU,
    *_timm_classes('Sigmoid', 'Tanh', 'HardSigmoid', 'HardSigmoidMe'))
# functions that modules keep as attributes -> the equal module, which `match` gets
FUNCTIONS: dict[Callable, Callable[..., nn.Module]] = {
    F.relu: nn.ReLU, F.relu_: nn.ReLU, torch.relu: nn.ReLU, F.relu6: nn.ReLU6, F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU, F.celu: nn.CELU, F.selu: nn.SELU, F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish,
    F.softplus: nn.Softplus, F.hardswish: nn.Hardswish, timm_activations.gelu: nn.GELU,
    timm_activations.gelu_tanh: functools.partial(nn.GELU, approximate='tanh'),
}
_CALLS = frozenset((
    'relu', 'relu_', 'relu6', 'leaky_relu', 'elu', 'celu', 'selu', 'gelu', 'silu', 'mish', 'softplus', 'hardswish',
    'swish', 'hard_swish', 'quick_gelu', 'gelu_tanh'))
_GATE_CALLS = frozenset(('sigmoid', 'sigmoid_', 'hardsigmoid', 'hard_sigmoid', 'tanh', 'tanh_', 'hardtanh', 'glu'))
_KNOWN = frozenset((*ACTIVATION_TYPES, *GATE_TYPES))


def nearest_type(module: nn.Module, types: tuple[type, ...] = ()) -> type | None:
    """Find the first class of a module, itself or inherited, that is a known activation, a gate or in `types`.

    A subclass of nn.ReLU is a ReLU; nn.ReLU6, which derives from the gate nn.Hardtanh, is a ReLU6.
    """
    return next((cls for cls in type(module).__mro__ if cls in _KNOWN or cls in types), None)


class Site(NamedTuple):
    """A place in a network with an activation."""
    name: str  # dotted name of the place
    parent: nn.Module  # the module that contains it
    attribute: str  # its name in the parent
    module: nn.Module  # the activation; for a function, the equal module


def module_sites(model: nn.Module, match: Callable[[nn.Module], bool]) -> Iterator[Site]:
    """Yield every place whose module matches: several for an aliased module; a shared parent is entered once."""
    for prefix, parent in model.named_modules():
        if isinstance(parent, ParametricActivation):
            continue
        for attribute, child in list(parent._modules.items()):
            if child is not None and match(child):
                yield Site(_join(prefix, attribute), parent, attribute, child)


def attribute_sites(model: nn.Module) -> Iterator[Site]:
    """Yield functions that modules keep as attributes, as `self.activation = F.relu`, with or without a partial."""
    for prefix, parent in model.named_modules():
        for attribute, value in list(vars(parent).items()):
            if not attribute.startswith('_') and (module := _as_module(value)) is not None:
                yield Site(_join(prefix, attribute), parent, attribute, module)


def _as_module(value: Any) -> nn.Module | None:
    """The module that computes the same as a function of `FUNCTIONS`; None for other values."""
    settings: dict[str, Any] = {}
    if isinstance(value, functools.partial) and not value.args:
        value, settings = value.func, {name: item for name, item in value.keywords.items() if name != 'inplace'}
    if not inspect.isroutine(value) or value not in FUNCTIONS:
        return None
    return FUNCTIONS[value](**settings)  # torch's functions and modules have the same names for their settings


def unreachable_sites(model: nn.Module) -> Iterator[tuple[Site, str]]:
    """Yield activations that cannot be replaced, with the reason."""
    scripted = {cls.__name__ for cls in ACTIVATION_TYPES}
    for prefix, parent in model.named_modules():
        if isinstance(parent, torch.jit.RecursiveScriptModule) and parent.original_name in scripted:
            yield Site(prefix, parent, '', parent), 'TorchScript, whose code is fixed'
        for attribute, value in vars(parent).items():
            items: dict[str, Any] = {'': value}
            if isinstance(value, (dict, list, tuple)):
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                items = {f'[{key!r}]': item for key, item in pairs}
            for key, item in items.items():
                if not attribute.startswith('_') and isinstance(item, nn.Module) and (
                        nearest_type(item) in ACTIVATION_TYPES):
                    yield (Site(_join(prefix, attribute + key), parent, attribute, item),
                           'outside of the module tree (in a list, tuple, dict or plain attribute)')


def function_calls(module: nn.Module) -> list[tuple[str, str]]:
    """Activation functions that the methods of a module's class call, as (functions, reason) for a report.

    The names come from the compiled methods, so that no example input is needed. A name that the module has as an
    attribute of its own (`self.relu`) is not a call of the function.
    """
    cls = type(module)
    if nearest_type(module) is not None or isinstance(module, ParametricActivation | torch.jit.ScriptModule):
        return []
    methods = {
        f'{cls.__name__}.{label}': [name for name in method.__code__.co_names if not hasattr(module, name)]
        for label, method in inspect.getmembers(cls, inspect.isfunction)
        if not label.startswith('__') and not (method.__module__ or '').startswith('torch.')}
    found = []
    for known, prefix in ((_CALLS, ''), (_GATE_CALLS, 'a gate, ')):
        callers = [label for label, names in methods.items() if known.intersection(names)]
        functions = dict.fromkeys(name for label in callers for name in methods[label] if name in known)
        if callers:
            found.append((', '.join(functions), f'{prefix}called in the code of {", ".join(callers)}'))
    return found


def stages(names: list[str]) -> dict[str, str]:
    """Assign each place to a stage, as the prefix of its name.

    The first level of the module tree divides the places. A prefix with more than half of them is taken for a container
    of stages (`layers`, `blocks`, `features`) and divided in turn, unless it is one of a numbered row (`layer3`) or
    contains a row of equal blocks (as in a vision transformer).
    """
    prefixes = {name: name.split('.')[0] for name in names}
    while True:
        largest, count = Counter(prefixes.values()).most_common(1)[0]
        row = re.sub(r'\d+$', '', largest)
        others = {*prefixes.values()} - {largest}
        numbered = row != largest and any(re.fullmatch(re.escape(row) + r'\d+', other) for other in others)
        members = [name for name in names if prefixes[name] == largest]
        if numbered or count <= len(names) / 2 or largest in names:
            return prefixes
        depth = largest.count('.') + 2
        deeper = {name: '.'.join(name.split('.')[:depth]) for name in members}
        if _are_blocks(deeper):
            return prefixes
        prefixes.update(deeper)


def _are_blocks(parts: dict[str, str]) -> bool:
    """Whether the parts of a container are layers or repeated blocks; stages contain numbered blocks."""
    inside: dict[str, set[str]] = {}
    for name, prefix in parts.items():
        inside.setdefault(prefix, set()).add(name.removeprefix(prefix))
    if len(inside) == len(parts):  # every place would be a stage of its own
        return True
    first, *others = inside.values()
    alike = bool(others) and all(other == first for other in others)
    return alike and not any(part.isdigit() for rest in first for part in rest.split('.'))


def _join(prefix: str, attribute: str) -> str:
    return f'{prefix}.{attribute}' if prefix else attribute
