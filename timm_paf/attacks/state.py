"""Contexts that change a model and restore it."""
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['eval_mode', 'attack_mode', 'frozen_parameters', 'still_statistics']


@contextmanager
def _changed(things: Iterable[Any], name: str, value: bool) -> Iterator[None]:
    """An attribute of modules or parameters has this value inside, and its own value afterwards."""
    before = [(thing, getattr(thing, name)) for thing in things]
    try:
        for thing, _ in before:
            setattr(thing, name, value)
        yield
    finally:
        for thing, own in before:
            setattr(thing, name, own)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has its own mode back, even where they differed."""
    with _changed(model.modules(), 'training', False):
        yield


@contextmanager
def attack_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """The mode in which a model is attacked; afterwards everything is as before.

    In 'eval' the whole model is in evaluation mode. In 'train' all BatchNorm layers, SyncBatchNorm too, normalise with
    the statistics of the batch, and everything else is in evaluation mode, so dropout is off. A BatchNorm layer in
    evaluation mode inside a network in training mode is frozen and stays in evaluation mode. Running statistics and
    counters are neither read nor written.
    """
    norms = [
        module for module in model.modules()
        if mode == 'train' and isinstance(module, _BatchNorm) and (module.training or not model.training)]
    with eval_mode(model), _changed(norms, 'training', True), still_statistics(model):
        yield


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics: layers in training mode normalise with the batch and do not update them."""
    tracking = [m for m in model.modules() if m.training and getattr(m, 'track_running_stats', False)]
    with _changed(tracking, 'track_running_stats', False):
        yield


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside, since custom autograd functions compute all that are required."""
    with _changed(model.parameters(), 'requires_grad', False):
        yield
