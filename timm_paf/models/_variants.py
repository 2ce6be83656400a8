"""Registration of `<architecture>_<activation>` names in timm's model registry."""
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from timm_paf.activations import ACTIVATIONS, SHARING, convert_activations, shared
from timm_paf.models.state_dict import checkpoint_filter_fn

# timm's names of the activations without parameters that the paper compares with, and those of this package
VARIANT_ACTIVATIONS = ('relu', 'elu', 'silu', 'softplus', *ACTIVATIONS)
NUM_CLASSES = 10  # default of the networks for 32x32 images: CIFAR-10


def pixel_cfg(first_conv: str, classifier: str, **settings: Any) -> dict[str, Any]:
    """Timm's pretrained cfg of a network for pixels in [0, 1]; for 32x32 images unless `settings` differ."""
    return {
        'url': '', 'num_classes': NUM_CLASSES, 'input_size': (3, 32, 32), 'pool_size': (4, 4), 'crop_pct': 1.,
        'interpolation': 'bicubic', 'mean': (0., 0., 0.), 'std': (1., 1., 1.), 'first_conv': first_conv,
        'classifier': classifier, 'license': 'apache-2.0', **settings,
    }


def _entrypoint(
        model_cls: Any, name: str, activation: str, arch: Mapping[str, Any], module: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        act_kwargs = kwargs.pop('act_kwargs', None) or {}
        act_sharing = kwargs.pop('act_sharing', None) or 'network'
        if act_sharing not in SHARING:
            raise ValueError(f'{name}: act_sharing = {act_sharing!r}: expected one of {", ".join(SHARING)}.')
        build: Callable[..., nn.Module] = model_cls
        if act_sharing != 'network':
            if kwargs.get('act_layer') is not None or activation not in ACTIVATIONS:
                raise ValueError(
                    f'{name}: act_sharing = {act_sharing!r} is for the parametric activation in the name of a model; '
                    'choose such a name and pass no act_layer.')
            kwargs['act_layer'] = partial(ACTIVATIONS[activation], **act_kwargs)
            if act_sharing != 'layer':  # converted before weights are loaded: they fit the converted network
                build = partial(_build_sharing, model_cls, activation, act_sharing, act_kwargs)
        elif kwargs.get('act_layer') is None:
            if activation in ACTIVATIONS:
                kwargs['act_layer'] = shared(activation, **act_kwargs)
            elif act_kwargs:
                raise ValueError(f'{name}: act_kwargs = {act_kwargs}, but {activation} has no parameters.')
            else:
                kwargs['act_layer'] = activation
        return build_model_with_cfg(
            build, name, pretrained, feature_cfg=dict(out_indices=tuple(range(model_cls.num_feature_levels))),
            pretrained_filter_fn=checkpoint_filter_fn, **{**arch, **kwargs})

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    create.__doc__ = f'{name.removesuffix(f"_{activation}")} with {activation}' + (
        ', one activation module for the whole network.' if activation in ACTIVATIONS else '.')
    return create


def _build_sharing(
        model_cls: type[nn.Module], activation: str, sharing: str, act_kwargs: Mapping[str, Any], **kwargs: Any,
) -> nn.Module:
    """A network with one activation per stage, or one value per channel."""
    model = model_cls(**kwargs)
    weight = next(p for p in model.parameters() if p.dim() == 4)
    # this pass only reads the number of channels; 32x32 is the smallest input of all networks here
    example = torch.zeros((1, kwargs.get('in_chans', 3), 32, 32), device=weight.device, dtype=weight.dtype)
    convert_activations(
        model, activation, sharing=sharing, match=ACTIVATIONS[activation], preserve=False, example_input=example,
        **act_kwargs)
    return model


def variant_cfgs(architectures: Iterable[str], cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `default_cfgs` of a module: one entry for each architecture and activation."""
    return generate_default_cfgs({
        f'{arch}_{activation}': dict(cfg) for arch in architectures for activation in VARIANT_ACTIVATIONS})


def register_variants(model_cls: type[nn.Module], architectures: Mapping[str, Mapping[str, Any]], module: str) -> None:
    """Register every architecture of a module with every activation, except names that timm already has.

    Args:
        model_cls: Class of the networks; `num_feature_levels` is its number of feature maps.
        architectures: Names to constructor arguments.
        module: `__name__` of the calling module, which holds `default_cfgs`; timm lists the models under its last part.
    """
    for arch, settings in architectures.items():
        for activation in VARIANT_ACTIVATIONS:
            name = f'{arch}_{activation}'
            if not timm.is_model(name):
                setattr(sys.modules[module], name, register_model(
                    _entrypoint(model_cls, name, activation, settings, module)))
