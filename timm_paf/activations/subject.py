"""Whatever a user may call an activation, as one function of float64 tensors with what is known of it."""
import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from timm.layers import GELU, GELUTanh, QuickGELU, get_act_layer
from timm.layers import PReLU as TimmPReLU
from torch import Tensor, nn

from timm_paf.activations import elementary as formulas
from timm_paf.activations.modules import REGISTERED, ParametricActivation, Softplus

__all__ = ['Activation', 'Known', 'Subject', 'subject_of', 'title']

Activation = str | nn.Module | Callable[[Tensor], Tensor]


def title(name: str, parameters: Mapping[str, float]) -> str:
    """An activation's name with its parameters, such as 'psilu(alpha=2)'."""
    values = ', '.join(f'{label}={value:.6g}' for label, value in parameters.items())
    return f'{name}({values})' if values else name


class Known(NamedTuple):
    """What is known in closed form: where f, f' or f'' may jump, the unit of x, and the slopes at -inf and inf."""
    breaks: tuple[float, ...] = ()
    scale: float = 1.
    slopes: tuple[float, float] | None = None


class Subject(NamedTuple):
    """An activation: its name, its parameters, the function, and what is known of it if anything is."""
    name: str
    parameters: Mapping[str, float]
    function: Callable[[Tensor], Tensor]
    known: Known | None


_KINKED, _SMOOTH = Known((0.,)), Known()
_OTHERS: dict[type, Known] = {  # exact types: a subclass may be another function
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.PReLU, TimmPReLU, nn.ELU, nn.CELU, nn.SELU), _KINKED),
    **dict.fromkeys((
        nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Identity, Softplus, GELU, GELUTanh, QuickGELU,
    ), _SMOOTH),
    nn.ReLU6: Known((0., 6.)),
    nn.Hardswish: Known((-3., 3.)),
}


def _known(module: nn.Module, name: str, values: Mapping[str, float]) -> Known | None:
    if not isinstance(module, ParametricActivation):
        return _OTHERS.get(type(module))
    tensors = {label: torch.tensor(value, dtype=torch.float64, device='cpu') for label, value in values.items()}
    a = values.get('alpha', 1.)
    if name in ('prelu0', 'pelu', 'preluplus', 'peluplus', 'reblu'):
        left, right = {'prelu0': (a, 1.), 'pelu': (0., 1.), 'reblu': (0., 1 + a)}.get(name, (0., a))
        return Known((0.,), slopes=(left, right))
    transform: dict[str, Callable[[Tensor], Tensor]] = {
        'psoftplus': formulas.softplus_sharpness, 'pssilu_fixed': formulas.squared_sharpness,
        'psilu': formulas.sharpness, 'pssilu': formulas.sharpness}
    sharpness = float(transform[name](tensors['alpha'])) if name in transform else 1.
    b = float(formulas.shift(tensors['beta'])) if 'beta' in tensors else 0.
    straight = (0.5 - b) / (1 - b)  # at sharpness 0 the sigmoid is 1/2 everywhere
    slopes = (-b / (1 - b), 1.) if sharpness > 0 else (straight, straight)
    return Known((), 1 / max(sharpness, 1e-100) if sharpness > 0 else 1., slopes)


def subject_of(activation: Activation, parameters: Mapping[str, float]) -> Subject:
    """An activation as `shape.describe` takes it; the same errors."""
    if isinstance(activation, str):
        layer: Any = _layer(activation)
        settings: dict[str, Any] = dict(parameters)
        if isinstance(layer, type) and issubclass(layer, ParametricActivation):
            settings.update(dtype=torch.float64, device='cpu')
        try:
            module = layer(**settings)
        except TypeError as error:
            raise ValueError(f'{activation!r} does not take {", ".join(parameters)}: {error}.') from None
        name = activation.lower().removeprefix('shared_')
    elif isinstance(activation, nn.Module):
        if parameters:
            raise TypeError(
                f'{type(activation).__name__} is a module and has its parameters; {", ".join(parameters)} can be given '
                'with a name or a function.')
        module, name = activation, _registered_name(activation)
    elif callable(activation) and not isinstance(activation, type):
        function = functools.partial(activation, **parameters)
        return Subject(getattr(activation, '__name__', repr(activation)), dict(parameters), function, None)
    else:
        raise TypeError(
            f'activation {activation!r}: expected a name such as "pssilu", an nn.Module instance, or a function.')

    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(f'{name} lies on the meta device and has no values; load it first.')
    if isinstance(module, ParametricActivation | nn.PReLU) and any(tensor.numel() > 1 for tensor in tensors):
        raise ValueError(
            f'{name} holds one value per channel, each of which is a shape of its own; describe one of them by name, '
            'e.g. describe("pssilu", alpha=float(act.alpha[0]), beta=float(act.beta[0])).')
    values = dict(parameters)
    if isinstance(module, ParametricActivation):
        values = {label: float(getattr(module, label).detach()) for label in module.parameter_specs}
    if not all(map(math.isfinite, values.values())):
        raise ValueError(f'{title(name, values)} has no shape: expected finite parameters.')
    return Subject(
        name, values, copy.deepcopy(module).to('cpu', torch.float64).eval().requires_grad_(False),
        _known(module, name, values))


def _layer(name: str) -> Callable[..., nn.Module]:
    lower = name.lower()
    layer = REGISTERED.get(lower.removeprefix('shared_'))
    try:
        return layer or get_act_layer(lower)
    except KeyError:
        import difflib
        near = difflib.get_close_matches(lower, REGISTERED, n=3) or sorted(REGISTERED)
        raise ValueError(
            f'unknown activation {name!r}; did you mean {" or ".join(near)}? timm\'s names can be given as well.'
        ) from None


def _registered_name(module: nn.Module) -> str:
    names = [name for name, cls in REGISTERED.items() if type(module) is cls]
    return names[0] if names else str(module)
