"""One activation module for a whole network."""
import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

from timm_paf.activations.construction import construction
from timm_paf.activations.modules import ACTIVATIONS, REGISTERED, ParametricActivation

__all__ = ['SHARED', 'shared', 'paf_parameters', 'paf_modules', 'shared_activations', 'activation_class']


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
    name, for configuration files. A model built with the function is saved by timm's `save_for_hf` under that name, if
    its architecture takes names and `settings` ask for no more than initial values; otherwise timm refuses.

    Args:
        name: Registered name, e.g. 'pssilu'.
        **settings: Arguments of the activation, e.g. `alpha=2., learnable=False`, `device=`, `dtype=`.

    Returns:
        A partial function with the signature that timm calls activation layers with; it can be pickled.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> model = timm.create_model('resnet50', act_layer=timm_paf.shared('pssilu'))
    """
    return functools.partial(_at_next_place, _Sharing(name, settings))


class _Sharing:
    """The modules that one factory has made: one for each model, and one for all that is built outside of models."""

    def __init__(self, name: str, settings: dict[str, Any], outside: bool = True) -> None:
        self.layer = activation_class(name)
        self.name = name.lower()
        self.settings = settings
        self.outside = outside  # whether it may be used there
        self.modules: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
        self.module: nn.Module | None = None

    def __reduce__(self):
        return _Sharing, (self.name, self.settings, self.outside)  # the modules belong to models that exist


def _at_next_place(sharing: _Sharing, inplace: bool = False, **kwargs: Any) -> nn.Module:
    model, _, _, arguments, architecture = construction()
    if model is None and not sharing.outside:
        raise RuntimeError(
            f"'shared_{sharing.name}' was asked for outside of the constructor of a model, so there is nothing to "
            f'share it; use one timm_paf.shared({sharing.name!r}) at all its places.')
    module = sharing.module if model is None else sharing.modules.get(model)
    if module is not None:
        if isinstance(module, ParametricActivation):
            module.places += 1
        return module
    module = sharing.layer(**{**kwargs, **sharing.settings})
    if model is None:
        sharing.module = module
        return module
    sharing.modules[model] = module
    if arguments is not None and architecture is not None and set(sharing.settings) <= {'alpha', 'beta'}:
        for key, value in arguments.items():  # initial values are in the state dict, and the rest is in the name
            if isinstance(value, functools.partial) and sharing in value.args and _takes_names(architecture, key):
                arguments[key] = f'shared_{sharing.name}'
    return module


@functools.cache
def _takes_names(architecture: str, key: str) -> bool:
    """Whether an architecture of timm takes an activation by name; some call what they are given. Found by trying."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device('meta'):
        warnings.simplefilter('ignore')
        try:
            model = timm.create_model(architecture, **{key: 'shared_pssilu'})
        except Exception:  # in any way there is
            return False
    return any(isinstance(module, ParametricActivation) for module in model.modules())


# `shared(name)` for every activation with parameters, by the names that timm finds them under
SHARED: dict[str, Callable[..., nn.Module]] = {
    f'shared_{name}': functools.partial(_at_next_place, _Sharing(name, {}, outside=False)) for name in ACTIVATIONS
}


def paf_modules(model: nn.Module) -> Iterator[tuple[str, ParametricActivation]]:
    """Every parametric activation of a model once, with the first name it is registered under."""
    for name, module in model.named_modules():
        if isinstance(module, ParametricActivation):
            yield name, module


def shared_activations(model: nn.Module) -> dict[str, ParametricActivation]:
    """The parametric activations that stand at more than one place of a model, by the first name of each.

    However they came there: also where one module was put at several places by hand.
    """
    # by parent: a walk over names shows a shared activation once
    places = Counter(child for parent in model.modules() for child in parent._modules.values())
    return {name: module for name, module in paf_modules(model) if places[module] > 1}


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
