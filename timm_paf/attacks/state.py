"""Leaving a model as it was found."""
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ['eval_mode', 'attack_mode', 'frozen_parameters', 'still_statistics', 'MODES']

MODES = ('eval', 'train')


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule has its own flag back, also where they differed."""
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
    """The mode in which a model is attacked; afterwards everything is as it was found.

    Evaluation mode throughout, except that in 'train' BatchNorm (of any kind, SyncBatchNorm too) normalises by the
    statistics of the batch: the layers that do so in training, which leaves out those that were set to eval inside a
    network in training; all of them if the network itself is in evaluation mode. Their running statistics and counters
    are not read and not written, so that nothing has to be restored. Dropout is off in both modes.

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
    """Normalisation as each layer's mode has it, and running statistics that are neither read in training nor moved."""
    moving = [
        module for module in model.modules() if getattr(module, 'track_running_stats', False) and module.training]
    try:
        for module in moving:
            module.track_running_stats = False
        yield
    finally:
        for module in moving:
            module.track_running_stats = True


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside, so that none is computed; afterwards those that did ask again.

    An attack needs the gradient to the image alone. A custom autograd function computes the gradients of its parameters
    whenever they ask for one, even if the caller of autograd.grad did not.
    """
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learnable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learnable:
            parameter.requires_grad_(True)
