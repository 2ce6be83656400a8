"""Any activation as one function of float64 tensors, with its closed forms where they are known."""
import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from timm.layers import GELU, GELUTanh, QuickGELU, get_act_layer
from timm.layers import PReLU as TimmPReLU
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from timm_paf.activations.modules import REGISTERED, ParametricActivation, Softplus
from timm_paf.activations.sharing import activation_class

__all__ = ['Activation', 'ClosedForm', 'Elementwise', 'elementwise', 'title']

#: What the functions of this module accept as an activation: a registered name, a module or a function of a tensor.
Activation = str | nn.Module | Callable[[Tensor], Tensor]


class ClosedForm(NamedTuple):
    """Where f, f' or f'' may jump, the unit of x, and the slopes at -inf and inf, by the formula."""
    breaks: tuple[float, ...] = ()
    scale: float = 1.
    slopes: tuple[float, float] | None = None


class Elementwise(NamedTuple):
    """An activation, with its closed form if it is known."""
    name: str
    parameters: Mapping[str, float]
    function: Callable[[Tensor], Tensor]
    known: ClosedForm | None


def title(name: str, parameters: Mapping[str, float]) -> str:
    """Format a name with parameters, such as 'psilu(alpha=2)'."""
    values = ', '.join(f'{label}={value:.6g}' for label, value in parameters.items())
    return f'{name}({values})' if values else name


def _sigmoid_like(a: float, b: float = 0.) -> ClosedForm:
    """Closed form of x (sigmoid(a x) - b)/(1 - b), which is a line at a = 0."""
    if a == 0:
        return ClosedForm(slopes=((0.5 - b) / (1 - b),) * 2)
    return ClosedForm(scale=1 / max(a, 1e-100), slopes=(-b / (1 - b), 1.))


# name -> closed form of the parameters that enter the formula
_CLOSED_FORMS: dict[str, Callable[..., ClosedForm]] = {
    'prelu0': lambda a: ClosedForm((0.,), slopes=(a, 1.)),
    'preluplus': lambda a: ClosedForm((0.,), slopes=(0., a)),
    'pelu': lambda a: ClosedForm((0.,), slopes=(0., 1.)),
    'peluplus': lambda a: ClosedForm((0.,), slopes=(0., a)),
    'reblu': lambda a: ClosedForm((0.,), slopes=(0., 1 + a)),
    'psilu': lambda a: _sigmoid_like(abs(a)),
    'psoftplus': lambda a: _sigmoid_like(abs(a)),
    'ssilu': lambda b: _sigmoid_like(1., abs(b)),
    'pssilu_fixed': lambda a, b: _sigmoid_like(abs(a), abs(b)),
    'pssilu': lambda a, b: _sigmoid_like(abs(a), abs(b)),
}
_OTHERS: dict[type, ClosedForm] = {  # exact types: a subclass may be another function
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.PReLU, TimmPReLU, nn.ELU, nn.CELU, nn.SELU), ClosedForm((0.,))),
    **dict.fromkeys((nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Identity), ClosedForm()),
    **dict.fromkeys((Softplus, GELU, GELUTanh, QuickGELU), ClosedForm()),
    nn.ReLU6: ClosedForm((0., 6.)),
    nn.Hardswish: ClosedForm((-3., 3.)),
}


def elementwise(activation: Activation, parameters: Mapping[str, float]) -> Elementwise:
    """Prepare an activation for `shape.describe`; arguments and errors are the same."""
    if isinstance(activation, str):
        module, name = _by_name(activation.lower(), parameters), activation.lower().removeprefix('shared_')
    elif isinstance(activation, nn.Module):
        kind = type(activation).__base__ if is_parametrized(activation) else type(activation)
        module, name = activation, next((n for n, c in REGISTERED.items() if kind is c), str(activation))
        if parameters:
            raise TypeError(f'{name} is a module and has its parameters; {", ".join(parameters)} can be given with a '
                            'name or a function.')
    elif callable(activation) and not isinstance(activation, type):
        function = functools.partial(activation, **parameters)
        return Elementwise(getattr(activation, '__name__', repr(activation)), dict(parameters), function, None)
    else:
        raise TypeError(
            f'activation {activation!r}: expected a name such as "pssilu", an nn.Module instance, or a function.')
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(f'{name} is on the meta device and has no values; load it first.')
    own = (getattr(module, label, tensors[:0]) for label in ('alpha', 'beta', 'weight'))
    if isinstance(module, ParametricActivation | nn.PReLU) and any(len(tensor) > 1 for tensor in own):
        raise ValueError(
            f'{name} has one value per channel, and each of them is another shape; describe one of them by name, '
            'e.g. describe("pssilu", alpha=float(act.alpha[0]), beta=float(act.beta[0])).')
    values, known = dict(parameters), _OTHERS.get(type(module))
    if isinstance(module, ParametricActivation):
        values = {label: float(getattr(module, label).detach()) for label in module.parameter_specs}
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f'{title(name, values)} has no shape: expected finite parameters.')
        if name in _CLOSED_FORMS:
            known = _CLOSED_FORMS[name](*(spec.clamp(values[label]) for label, spec in module.parameter_specs.items()))
    return Elementwise(
        name, values, copy.deepcopy(module).to('cpu', torch.float64).eval().requires_grad_(False), known)


def _by_name(name: str, parameters: Mapping[str, float]) -> nn.Module:
    layer: Any = REGISTERED.get(name.removeprefix('shared_'))
    settings: dict[str, Any] = dict(parameters)
    if layer is None:
        try:
            layer = get_act_layer(name)
        except KeyError:
            layer = activation_class(name)  # raises the error that suggests names
    elif issubclass(layer, ParametricActivation):
        settings.update(dtype=torch.float64, device='cpu')
    try:
        return layer(**settings)
    except TypeError as error:
        raise ValueError(f'activation {name!r} does not accept {", ".join(parameters)} ({error}).') from None
