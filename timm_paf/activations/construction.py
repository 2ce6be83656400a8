"""The model under construction, read from the running constructors.

timm calls `act_layer(inplace=True)` without the model, its `device` or its `dtype`, and no hook sees a constructor at
work. A shared activation must belong to one model, and parameters must be on the device of the weights, so the call
stack is the only source. Nothing reads it after a model is built.
"""
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

import timm
from torch import nn

__all__ = ['Construction', 'construction']


class Construction(NamedTuple):
    """The state of the running constructors.

    Attributes:
        model: The outermost module whose `__init__` is running inside the nearest `timm.create_model`, or None.
        device: `device` argument of the innermost constructor that has one.
        dtype: `dtype` argument, in the same way.
        arguments: Keyword arguments of that `timm.create_model`, which timm stores for `save_for_hf`; None outside.
        architecture: Its model name; None outside.
    """
    model: nn.Module | None = None
    device: Any = None
    dtype: Any = None
    arguments: dict[str, Any] | None = None
    architecture: str | None = None


def construction(skip: nn.Module | None = None) -> Construction:
    """Read the running constructors, except that of the module `skip`."""
    found = Construction()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        values = frame.f_locals
        if frame.f_code is timm.create_model.__code__:
            kwargs = values.get('kwargs', {})
            return _placed(found, kwargs)._replace(arguments=kwargs, architecture=values.get('model_name'))
        module = values.get('self') if frame.f_code.co_name == '__init__' else None
        if isinstance(module, nn.Module) and module is not skip:
            found = _placed(found, values)._replace(model=module)
        frame = frame.f_back
    return found


def _placed(found: Construction, values: Mapping[str, Any]) -> Construction:
    """Take device and dtype where no inner constructor has them."""
    return found._replace(**{name: values.get(name) for name in ('device', 'dtype') if getattr(found, name) is None})
