"""Contexts that change a model and restore it."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['eval_mode', 'attack_mode', 'frozen_parameters', 'still_statistics', 'MODES']

MODES = ('eval', 'train')


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has its own mode back, even where they differed."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attack_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """The mode in which a model is attacked; afterwards everything is as before.

    In 'eval' the whole model is in evaluation mode. In 'train' all BatchNorm layers, SyncBatchNorm too, normalise with
    the statistics of the batch, and everything else is in evaluation mode, so dropout is off. A BatchNorm layer in
    evaluation mode inside a network in training mode is frozen and stays in evaluation mode. Running statistics and
    counters are neither read nor written.

    Args:
        model: The network.
        mode: 'eval' or 'train'.
    """
    norms = [
        module for module in model.modules()
        if mode == 'train' and isinstance(module, _BatchNorm) and (module.training or not model.training)]
    training = [module.training for module in norms]
    with eval_mode(model):
        try:
            for module in norms:
                module.training = True
            with still_statistics(model):
                yield
        finally:
            for module, flag in zip(norms, training, strict=True):
                module.training = flag


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics: layers in training mode normalise with the batch and do not update them."""
    tracking: list[Any] = [  # nn.Module does not declare the attribute
        module for module in model.modules() if getattr(module, 'track_running_stats', False) and module.training]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; afterwards those that did require one again.

    An attack needs the gradient for the image only. A custom autograd function computes the gradients of its parameters
    whenever they require one, even if torch.autograd.grad is not asked for them.
    """
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learnable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learnable:
            parameter.requires_grad_(True)
