"""Where the activations of a network are: modules, functions kept as attributes, and calls in methods."""
import ast
import functools
import inspect
import re
import textwrap
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
    'ACTIVATION_TYPES', 'GATE_TYPES', 'FUNCTIONS', 'Calls', 'Site', 'attribute_sites', 'function_calls',
    'module_sites', 'nearest_type', 'stages', 'unreachable_sites',
]


def _timm_classes(*names: str) -> tuple[type[nn.Module], ...]:
    found = [getattr(module, name, None) for module in (timm_activations, activations_me) for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


# what networks put between layers
ACTIVATION_TYPES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, Softplus,
    *_timm_classes(
        'Swish', 'Mish', 'PReLU', 'HardSwish', 'HardMish', 'GELU', 'GELUTanh', 'QuickGELU', 'SwishMe', 'MishMe',
        'HardSwishMe', 'HardMishMe'))
# what networks use as gates and in attention: replacing them would change what the network is
GATE_TYPES: tuple[type[nn.Module], ...] = (
    nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softmax, nn.GLU,
    *_timm_classes('Sigmoid', 'Tanh', 'HardSigmoid', 'HardSigmoidMe'))
# functions that stand for an activation, by the module that `match` is asked about
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
    """The first class that a module is of, itself or by inheritance, which is a known activation, a gate or in `types`.

    A subclass of nn.ReLU is a ReLU; nn.ReLU6, which derives from the gate nn.Hardtanh, is a ReLU6.
    """
    return next((cls for cls in type(module).__mro__ if cls in _KNOWN or cls in types), None)


class Site(NamedTuple):
    """A place in a network that holds an activation.

    Attributes:
        name: Dotted name of the place.
        parent: The module that holds it.
        attribute: Its name there.
        module: The activation, or a module that stands for the function that is there.
    """
    name: str
    parent: nn.Module
    attribute: str
    module: nn.Module


def module_sites(model: nn.Module, match: Callable[[nn.Module], bool]) -> Iterator[Site]:
    """Every place whose module matches; an aliased module has several, a shared parent is entered once."""
    for prefix, parent in model.named_modules():
        if isinstance(parent, ParametricActivation):
            continue
        for attribute, child in list(parent._modules.items()):
            if child is not None and match(child):
                yield Site(_join(prefix, attribute), parent, attribute, child)


def attribute_sites(model: nn.Module) -> Iterator[Site]:
    """Functions that modules keep as attributes and call, as `self.activation = F.relu`, with or without a partial."""
    for prefix, parent in model.named_modules():
        for attribute, value in list(vars(parent).items()):
            if not attribute.startswith('_') and (module := _stand_in(value)) is not None:
                yield Site(_join(prefix, attribute), parent, attribute, module)


def _stand_in(value: Any) -> nn.Module | None:
    """The module that computes what a function does, if it is one of `FUNCTIONS`."""
    keywords: dict[str, Any] = {}
    if isinstance(value, functools.partial) and not value.args:
        value, keywords = value.func, {name: item for name, item in value.keywords.items() if name != 'inplace'}
    if not inspect.isroutine(value) or value not in FUNCTIONS:
        return None
    return FUNCTIONS[value](**keywords)  # torch's functions and modules give their settings the same names


def unreachable_sites(model: nn.Module) -> Iterator[tuple[Site, str]]:
    """Activations that stand where no module can be put for them, with the reason."""
    def wanted(value: Any) -> bool:
        return isinstance(value, nn.Module) and nearest_type(value) in ACTIVATION_TYPES

    for prefix, parent in model.named_modules():
        for attribute, value in vars(parent).items():
            if attribute.startswith('_'):
                continue
            held = {f'[{key!r}]': item for key, item in value.items()} if isinstance(value, dict) else (
                {f'[{i}]': item for i, item in enumerate(value)} if isinstance(value, (list, tuple)) else {'': value})
            for key, item in held.items():
                if wanted(item):
                    reason = 'kept outside of the module tree (in a list, tuple, dict or plain attribute)'
                    yield Site(_join(prefix, attribute + key), parent, attribute, item), reason
        if isinstance(parent, torch.jit.RecursiveScriptModule) and parent.original_name in _SCRIPTED:
            yield Site(prefix, parent, '', parent), 'TorchScript, whose code is fixed'


_SCRIPTED = frozenset(cls.__name__ for cls in ACTIVATION_TYPES)


class Calls(NamedTuple):
    """Activation functions that the methods of a class call.

    Attributes:
        methods: Methods with such calls, as 'Block.forward'.
        functions: What they call, as 'F.relu'.
        gates: Whether all of them are gates.
    """
    methods: tuple[str, ...]
    functions: tuple[str, ...]
    gates: bool


def function_calls(module: nn.Module) -> list[Calls]:
    """Calls of activation functions in the methods of a module's class: activations first, then gates.

    Found in the source, so that no example input is needed; modules without source (TorchScript) give none.
    """
    if nearest_type(module) is not None or isinstance(module, ParametricActivation):
        return []
    if type(module).__module__.startswith('torch.nn.modules.'):
        return []
    return _calls_of(type(module))  # type: ignore[arg-type]  # a class is hashable


@functools.lru_cache(maxsize=1024)
def _calls_of(cls: type) -> list[Calls]:
    found: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith('__') or (method.__module__ or '').startswith('torch.'):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (called := _activation_called(node.func)):
                label, gate = called
                found[gate].append((f'{cls.__name__}.{name}', label))
    return [
        Calls(tuple(dict.fromkeys(m for m, _ in calls)), tuple(dict.fromkeys(label for _, label in calls)), gate)
        for gate, calls in found.items() if calls]


def _activation_called(function: ast.expr) -> tuple[str, bool] | None:
    """The source of a called activation function, and whether it is a gate; calls through self are modules."""
    name = getattr(function, 'id', None) or getattr(function, 'attr', None)
    if name not in _CALLS and name not in _GATE_CALLS:
        return None
    source = ast.unparse(function)
    if source.startswith('self.') and source.count('.') == 1:
        return None
    return source, name in _GATE_CALLS


def stages(names: list[str]) -> dict[str, str]:
    """The stage of each place, as the prefix of its name.

    The first level of the module tree divides the places. Where one prefix holds more than half of them it is taken
    for a container of stages (`layers`, `blocks`, `features`) and divided in turn, unless it is one of a numbered row
    (`layer3`) or a row of equal blocks (a vision transformer's).
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
    """Whether the parts of a container are layers or repeated blocks rather than stages, which hold numbered blocks."""
    if len(set(parts.values())) == len(parts):  # every place would be a stage of its own
        return True
    inside: dict[str, set[str]] = {}
    for name, prefix in parts.items():
        inside.setdefault(prefix, set()).add(name.removeprefix(prefix))
    first, *others = inside.values()
    alike = bool(others) and all(other == first for other in others)
    return alike and not any(part.isdigit() for rest in first for part in rest.split('.'))


def _join(prefix: str, attribute: str) -> str:
    return f'{prefix}.{attribute}' if prefix else attribute
