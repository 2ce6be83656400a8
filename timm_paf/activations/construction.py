"""Which model is being built, and where: what timm does not tell an activation layer.

timm calls `act_layer(inplace=True)`, without the model, its `device` and its `dtype`. They decide what an activation
must be (a shared one belongs to one model; parameters must lie with the weights), so they are read from the
constructors that are running. Nothing here is consulted once a model is built.
"""
import sys
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

__all__ = ['Construction', 'construction']


class Construction(NamedTuple):
    """What the running constructors say.

    Attributes:
        model: The outermost nn.Module whose `__init__` is running, up to the nearest `timm.create_model`; None outside.
        device: The `device` of the innermost of them that has one.
        dtype: The `dtype` likewise.
        arguments: The keyword arguments of that `timm.create_model`, which timm will store for saving the model; None
            outside.
        architecture: Name of the architecture that it was asked for; None outside.
    """
    model: nn.Module | None
    device: Any
    dtype: Any
    arguments: dict[str, Any] | None
    architecture: str | None


def construction(skip: nn.Module | None = None) -> Construction:
    """Read the constructors that are running, from the inside out.

    Args:
        skip: A module whose own constructor does not count.
    """
    import timm
    model: nn.Module | None = None
    placement: dict[str, Any] = {}
    arguments: dict[str, Any] | None = None
    architecture: str | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is timm.create_model.__code__:
            arguments = frame.f_locals.get('kwargs') or {}
            architecture = frame.f_locals.get('model_name')
            _note(placement, arguments)
            break
        if frame.f_code.co_name == '__init__':
            candidate = frame.f_locals.get('self')
            if isinstance(candidate, nn.Module) and candidate is not skip:
                model = candidate
                _note(placement, frame.f_locals)
        frame = frame.f_back
    return Construction(model, placement.get('device'), placement.get('dtype'), arguments, architecture)


def _note(placement: dict[str, Any], names: dict[str, Any]) -> None:
    for name in ('device', 'dtype'):
        if names.get(name) is not None:
            placement.setdefault(name, names[name])
