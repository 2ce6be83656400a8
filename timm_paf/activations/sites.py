"""Where the activations of a network are: modules, functions kept as attributes, and calls in forward methods."""
import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional, Union

from timm.layers import activations as timm_activations
from timm.layers import activations_me
from torch import nn
from torch.nn import functional as F

from .modules import ParametricActivation, Softplus

__all__ = ['ACTIVATION_TYPES', 'GATE_TYPES', 'FUNCTIONS', 'Site', 'attribute_sites', 'function_calls', 'module_sites']


def _timm_classes(*names: str) -> tuple[type[nn.Module], ...]:
    found = [getattr(module, name, None) for module in (timm_activations, activations_me) for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


# what networks put between layers; exact types, since e.g. nn.ReLU6 derives from nn.Hardtanh
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
FUNCTIONS: dict[Callable, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, F.relu_: nn.ReLU, F.relu6: nn.ReLU6, F.leaky_relu: nn.LeakyReLU, F.elu: nn.ELU, F.celu: nn.CELU,
    F.selu: nn.SELU, F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish, F.softplus: nn.Softplus,
    F.hardswish: nn.Hardswish, timm_activations.gelu: nn.GELU,
    timm_activations.gelu_tanh: lambda: nn.GELU(approximate='tanh'),
}
_CALLS = frozenset((
    'relu', 'relu_', 'relu6', 'leaky_relu', 'elu', 'celu', 'selu', 'gelu', 'silu', 'mish', 'softplus', 'hardswish',
    'swish', 'hard_swish', 'quick_gelu', 'gelu_tanh'))


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
                yield Site(f'{prefix}.{attribute}' if prefix else attribute, parent, attribute, child)


def attribute_sites(model: nn.Module) -> Iterator[Site]:
    """Functions that modules keep as attributes and call, as `self.activation = F.relu`."""
    for prefix, parent in model.named_modules():
        for attribute, value in list(vars(parent).items()):
            if not attribute.startswith('_') and inspect.isroutine(value) and value in FUNCTIONS:
                yield Site(f'{prefix}.{attribute}' if prefix else attribute, parent, attribute, FUNCTIONS[value]())


def function_calls(module: nn.Module) -> list[str]:
    """Names of activation functions that the forward methods of a module's class call, such as 'F.relu'.

    Found in the source, so that no example input is needed; modules without source (TorchScript) give none.
    """
    if type(module) in (*ACTIVATION_TYPES, *GATE_TYPES) or isinstance(module, ParametricActivation):
        return []
    if type(module).__module__.startswith('torch.nn.modules.'):
        return []
    return _calls_of(type(module))


def _calls_of(cls: type) -> list[str]:
    found: list[str] = []
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith('forward') or method.__module__.startswith('torch.'):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (label := _activation_called(node.func)) and label not in found:
                found.append(label)
    return found


def _activation_called(function: Union[ast.expr, ast.Name]) -> Optional[str]:
    """The source of a called activation function; calls through self are modules and found as such."""
    if isinstance(function, ast.Name) and function.id in _CALLS:
        return function.id
    if isinstance(function, ast.Attribute) and function.attr in _CALLS:
        source = ast.unparse(function)
        return None if source.startswith('self.') and source.count('.') == 1 else source
    return None
