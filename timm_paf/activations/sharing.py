"""One activation module for a whole network."""
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Optional

from torch import nn

from .construction import construction
from .modules import ACTIVATIONS, REGISTERED, ParametricActivation

__all__ = ['SHARED', 'shared', 'paf_parameters', 'paf_modules', 'activation_class']


def activation_class(name: str) -> type[nn.Module]:
    """The class of an activation by its registered name.

    Args:
        name: A name of `timm_paf.activations.REGISTERED`, in any case.

    Raises:
        ValueError: If there is none of that name; the message names the nearest ones.
    """
    import difflib
    if not isinstance(name, str):
        raise TypeError(f'activation {name!r} is of type {type(name).__name__}; expected a name such as "pssilu".')
    found = REGISTERED.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), REGISTERED, n=3) or sorted(REGISTERED)
        raise ValueError(f'unknown activation {name!r}; did you mean {" or ".join(near)}?')
    return found


def shared(name: str, **settings: Any) -> Callable[..., nn.Module]:
    """An `act_layer` that puts one and the same activation module at every place of a model.

    Two models built with one such factory get a module each: the factory asks which model is being constructed.
    Outside of any constructor it keeps handing out one module. `act_layer='shared_pssilu'` is `shared('pssilu')` as a
    name, for configuration files; timm's `save_for_hf` stores that name for a model built with the function, unless
    `settings` asks for more than initial values (pass it `model_args=` then, as its message says).

    Args:
        name: Registered name, e.g. 'pssilu'.
        **settings: Arguments of the activation, e.g. `alpha=2., learnable=False`, `device=`, `dtype=`.

    Returns:
        A function with the signature that timm calls activation layers with.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> model = timm.create_model('resnet50', act_layer=timm_paf.shared('pssilu'))
    """
    return _factory(name, settings, outside=[])


def _factory(name: str, settings: dict[str, Any], outside: Optional[list[nn.Module]]) -> Callable[..., nn.Module]:
    layer = activation_class(name)
    registered_name = f'shared_{name.lower()}'
    modules: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()

    def act_layer(inplace: bool = False, **kwargs: Any) -> nn.Module:
        model, _, _, arguments = construction()
        if model is None and outside is None:
            raise RuntimeError(
                f'{registered_name!r} was asked for outside of the constructor of a model, so there is nothing to '
                f'share it; use one timm_paf.shared({name!r}) at all its places.')
        module = modules.get(model) if model is not None else next(iter(outside or ()), None)
        if module is not None:
            if isinstance(module, ParametricActivation):
                module.places += 1
            return module
        module = layer(**{**kwargs, **settings})
        if model is not None:
            modules[model] = module
        elif outside is not None:
            outside.append(module)
        if arguments is not None and set(settings) <= {'alpha', 'beta'}:  # the values are in the state dict
            arguments.update({key: registered_name for key, value in arguments.items() if value is act_layer})
        return module

    functools.update_wrapper(act_layer, layer, assigned=('__doc__',), updated=())
    act_layer.__name__ = act_layer.__qualname__ = registered_name
    return act_layer


# `shared(name)` for every activation with parameters, by the names that timm finds them under
SHARED: dict[str, Callable[..., nn.Module]] = {
    f'shared_{name}': _factory(name, {}, outside=None) for name in ACTIVATIONS
}


def paf_modules(model: nn.Module) -> Iterator[tuple[str, ParametricActivation]]:
    """Every parametric activation of a model once, with the first name it is registered under."""
    for name, module in model.named_modules():
        if isinstance(module, ParametricActivation):
            yield name, module


def paf_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learnable alpha and beta of a model, each once, by the first name it is registered under.

    Args:
        model: Any module; wrappers such as DistributedDataParallel are part of the names.

    Returns:
        Names such as 'act1.alpha' to parameters, in order of registration; empty if there are none.
    """
    return {
        f'{prefix}.{name}' if prefix else name: parameter
        for prefix, module in paf_modules(model)
        for name, parameter in module.named_parameters(recurse=False)
    }
