"""Names under which RobustBench's `load_model` finds the networks of this package through timm.

`load_model('wrn28_10_pssilu', dataset='cifar10', threat_model='Linf', custom_checkpoint=FILE)` asks timm for
`wrn28_10_pssilu_cifar10_linf` with `pretrained=True` and `checkpoint_path=FILE`. Such a name is the network without
weights, which refuses to run until some were loaded.
"""
from collections.abc import Callable, Iterable
from typing import Any

import timm
from timm.models import _registry, model_entrypoint
from torch import nn

__all__ = ['register_robustbench_names']

DATASETS = {'cifar10': 10, 'cifar100': 100, 'imagenet': 1000}
THREATS = ('linf', 'l2', 'corruptions')


def register_robustbench_names(models: Iterable[str]) -> None:
    """Register `<model>_<dataset>_<threat>` in timm for RobustBench's data sets and threat models.

    The names are left out of `timm.list_models`, where they would crowd out the others. One that timm knows already is
    left alone.

    Args:
        models: Names of timm's registry.
    """
    # timm keeps names that it does not list there; where it has no such table, ours are listed
    unlisted = getattr(_registry, '_deprecated_models', {})
    for model in models:
        for dataset, classes in DATASETS.items():
            for threat in THREATS:
                name = f'{model}_{dataset}_{threat}'
                if not timm.is_model(name):
                    _registry._model_entrypoints[name] = _entrypoint(name, model_entrypoint(model), classes)
                    _registry._model_to_module[name] = __name__.rsplit('.', 1)[-1]
                    unlisted[name] = model


def _entrypoint(name: str, create: Callable[..., nn.Module], classes: int) -> Callable[..., nn.Module]:
    def create_for_robustbench(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        given = any(kwargs.get(key) for key in ('pretrained_cfg', 'pretrained_cfg_overlay'))
        # without a file of its own there is nothing to load here: timm loads checkpoint_path after this
        model = create(pretrained=pretrained and given, **{'num_classes': classes, **kwargs})
        if pretrained and not given:
            _refuse_until_loaded(model, name)
        return model

    create_for_robustbench.__name__ = create_for_robustbench.__qualname__ = name
    return create_for_robustbench


def _refuse_until_loaded(model: nn.Module, name: str) -> None:
    """Let a model without weights raise RuntimeError when it is called, until load_state_dict was."""
    def refuse(module: nn.Module, args: Any) -> None:
        raise RuntimeError(
            f'{name} has no published weights and none were loaded; give their file, as custom_checkpoint= of '
            'load_model or checkpoint_path= of timm.create_model.')

    def admit(module: nn.Module, incompatible: Any) -> None:
        if not incompatible.missing_keys:
            for handle in handles:
                handle.remove()

    handles = [model.register_forward_pre_hook(refuse), model.register_load_state_dict_post_hook(admit)]
