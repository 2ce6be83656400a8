"""One activation module for a whole network, and the list of parametric activations of a model."""
import difflib
import functools
import re
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

__all__ = ['shared', 'shared_layers', 'paf_parameters', 'paf_modules', 'shared_activations', 'activation_class']


def activation_class(name: str) -> type[nn.Module]:
    """Look up the class of an activation.

    Args:
        name: A name in `timm_paf.activations.REGISTERED`, in upper or lower case.

    Raises:
        ValueError: If the name is unknown; the message suggests the nearest ones.
    """
    if not isinstance(name, str):
        raise TypeError(f'activation {name!r} is of type {type(name).__name__}; expected a name such as "pssilu".')
    found = REGISTERED.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), REGISTERED, n=3) or sorted(REGISTERED)
        raise ValueError(f'unknown activation {name!r}; did you mean {" or ".join(near)}?')
    return found


def shared(name: str, **settings: Any) -> Callable[..., nn.Module]:
    """Create an `act_layer` that puts the same activation module at every place of a model.

    Each model built with it gets a module of its own. Outside of any constructor, all calls return one module.
    `act_layer='shared_pssilu'` is `shared('pssilu')` by name, for configuration files. timm's `save_for_hf` stores a
    model built with `shared` under that name, if its architecture takes names and `settings` are only initial values;
    otherwise timm refuses to save.

    Args:
        name: Registered name, e.g. 'pssilu'.
        **settings: Arguments of the activation, e.g. `alpha=2., learnable=False`, `device=`, `dtype=`.

    Returns:
        A partial function with the signature that timm expects of an activation layer. It can be pickled.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> model = timm.create_model('resnet50', act_layer=timm_paf.shared('pssilu'))
    """
    return functools.partial(_at_next_place, _Sharing(name, settings))


def shared_layers() -> dict[str, Callable[..., nn.Module]]:
    """`shared(name)` for every activation with parameters, by the name under which timm finds it ('shared_pssilu').

    Outside of any constructor, each call returns a module of its own, as timm's names do.
    """
    return {f'shared_{name}': functools.partial(_at_next_place, _Sharing(name, {}, False)) for name in ACTIVATIONS}


class _Sharing:
    """The modules made by one `shared(...)`: one for each model, and (if `outside`) one outside of models."""

    def __init__(self, name: str, settings: dict[str, Any], outside: bool = True) -> None:
        self.layer = activation_class(name)
        self.name, self.settings, self.outside = name.lower(), settings, outside
        self.modules: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
        self.module: nn.Module | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Sharing, (self.name, self.settings, self.outside)  # the modules belong to existing models


def _at_next_place(sharing: _Sharing, inplace: bool = False, **kwargs: Any) -> nn.Module:
    model, _, _, arguments, architecture = construction()
    if model is None and arguments is not None and not sharing.outside:
        raise ValueError(
            f"act_layer = 'shared_{sharing.name}': {architecture} makes activations before its model, so there is none "
            f'to share them in; pass act_layer=timm_paf.shared({sharing.name!r}).')
    module = sharing.module if model is None else sharing.modules.get(model)
    if module is not None:
        if isinstance(module, ParametricActivation):
            module.places += 1
        return module
    module = sharing.layer(**{**kwargs, **sharing.settings})
    if model is None:
        sharing.module = module if sharing.outside else None
        return module
    sharing.modules[model] = module
    if arguments is not None and architecture is not None and sharing.settings.keys() <= {'alpha', 'beta'}:
        for key, value in arguments.items():  # initial values are in the state dict; the name says the rest
            if isinstance(value, functools.partial) and sharing in value.args and _takes_names(architecture, key):
                arguments[key] = f'shared_{sharing.name}'
    return module


@functools.cache
def _takes_names(architecture: str, key: str) -> bool:
    """Whether an architecture of timm accepts an activation by name (some call what they get), found by a trial."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device('meta'):
        warnings.simplefilter('ignore')
        try:
            arguments: dict[str, Any] = {key: 'shared_pssilu'}
            model = timm.create_model(architecture, **arguments)
        except Exception:  # architectures fail in many ways
            return False
    return any(isinstance(module, ParametricActivation) for module in model.modules())


def paf_modules(model: nn.Module) -> Iterator[tuple[str, ParametricActivation]]:
    """Yield each parametric activation of a model once, with its first name."""
    for name, module in model.named_modules():
        if isinstance(module, ParametricActivation):
            yield name, module


def shared_activations(model: nn.Module) -> dict[str, ParametricActivation]:
    """Find the parametric activations at more than one place of a model, by the first name of each.

    Also finds a module that the caller put at several places without `shared`.
    """
    # counted by parent: a walk over names yields a shared activation only once
    places = Counter(child for parent in model.modules() for child in parent._modules.values())
    return {name: module for name, module in paf_modules(model) if places[module] > 1}


def paf_parameters(model: nn.Module, which: str = '') -> dict[str, nn.Parameter]:
    """List the learnable alpha and beta of a model, each once, by its first name.

    Args:
        model: Any module; the names include wrappers such as DistributedDataParallel.
        which: 'alpha' or 'beta' for those alone.

    Returns:
        Names such as 'act1.alpha' to parameters, in order of registration; empty if there are none. Where a tool of
        torch computes alpha or beta from other parameters (`parametrize`, `prune`, `weight_norm`), it is those, by
        their names, such as 'act1.parametrizations.alpha.original'.
    """
    return {
        f'{prefix}.{name}' if prefix else name: parameter
        for prefix, module in paf_modules(model)
        for name, parameter in module.named_parameters()
        if not which or which in re.split('[._]', name)  # as in 'beta_orig'
    }
