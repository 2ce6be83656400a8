"""Leaving a model as it was found."""
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['eval_mode', 'frozen_parameters']


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
