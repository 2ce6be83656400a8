"""Models of timm whose activations were replaced after construction, in a form that timm can build again."""
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_paf.activations import ACTIVATIONS, activation_places, put_activations

__all__ = ['built_from', 'conversion_args', 'paf_converted']

Activation = Mapping[str, Any]


@register_model
def paf_converted(
        pretrained: bool = False, base: str | None = None, activations: Sequence[Activation] = (), **kwargs: Any,
) -> nn.Module:
    """A model of timm with parametric activations at given places; `save_for_hf` writes the arguments.

    Args:
        pretrained: Load the weights that `pretrained_cfg` names.
        base: Name of the model in timm.
        activations: For each module its registered `name`, the names of its `places`, and its arguments.
        **kwargs: Arguments of `timm.create_model` for the base.

    Raises:
        ValueError: If base is missing, or it has no such place.
    """
    if base is None:
        raise ValueError("paf_converted: base is missing; load a folder of save_for_hf with 'local-dir:FOLDER'.")
    model = build_model_with_cfg(_build, 'paf_converted', pretrained, base=base, activations=activations, **kwargs)
    model._model_args = {'base': base, 'activations': activations, **getattr(model, '_model_args', {})}  # type: ignore[assignment]
    return model


def _build(base: str, activations: Sequence[Activation], **kwargs: Any) -> nn.Module:
    model = timm.create_model(base, **kwargs)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for each in activations:
        arguments = dict(each)
        cls, places = ACTIVATIONS[arguments.pop('name')], arguments.pop('places')
        module = cls(**arguments, device=like.device, dtype=like.dtype)
        module.places = len(places)
        try:
            put_activations(model, dict.fromkeys(places, module))
        except AttributeError as error:
            raise ValueError(
                f'paf_converted: {base}: {error} Use the release of timm with which the model was saved; '
                f'this is {timm.__version__}.') from None
    return model


def built_from(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name of a model in timm before its activations were replaced, and its recorded arguments."""
    args = dict(getattr(model, '_model_args', {}))
    args.pop('activations', None)
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    return args.pop('base', architecture), args


def conversion_args(model: nn.Module, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `paf_converted` for a model; empty if timm builds it with its activations.

    Args:
        model: A model from `timm.create_model`, whose activations may have been replaced.
        args: Arguments of `timm.create_model` in addition to those that timm recorded.

    Raises:
        ValueError: If timm cannot build the model again, since it was changed in other ways.
    """
    base, recorded = built_from(model)
    found: dict[str, Any] = {}
    with torch.device('meta'):
        again = timm.create_model(base, **{**recorded, **args})
        if _activations(again) != (activations := _activations(model)):
            found = {'base': base, 'activations': activations}
            again = _build(**found, **{**recorded, **args})
    other = sorted(again.state_dict().keys() ^ model.state_dict().keys())
    if other or _activations(again) != activations:
        raise ValueError(f'{base} was changed after construction, and timm cannot build it again; expected the '
                         f'structure that timm.create_model gives it (these names differ: {", ".join(other[:3])}).')
    return found


def _activations(model: nn.Module) -> list[dict[str, Any]]:
    return [{
        'name': module.name, 'places': places, 'num_parameters': module.num_parameters,
        'channel_dim': module.channel_dim,
        'learnable': {name: name in module._parameters for name in module.parameter_specs},
    } for module, places in activation_places(model).items()]


default_cfgs = generate_default_cfgs({'paf_converted': {}})
