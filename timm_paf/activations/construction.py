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
    """The state of the running constructors."""
    model: nn.Module | None = None  # outermost module whose `__init__` runs inside the nearest `timm.create_model`
    device: Any = None  # of the innermost constructor that has such an argument
    dtype: Any = None
    arguments: dict[str, Any] | None = None  # of that `timm.create_model`, which timm stores for `save_for_hf`
    architecture: str | None = None  # its model name


def construction(skip: nn.Module | None = None) -> Construction:
    """Read the running constructors, except that of the module `skip`."""
    found = Construction()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        values, module = frame.f_locals, frame.f_locals.get('self')
        if frame.f_code is timm.create_model.__code__:
            kwargs = values.get('kwargs', {})
            return _placed(found, kwargs)._replace(arguments=kwargs, architecture=values.get('model_name'))
        if frame.f_code.co_name == '__init__' and isinstance(module, nn.Module) and module is not skip:
            found = _placed(found, values)._replace(model=module)
        frame = frame.f_back
    return found


def _placed(found: Construction, values: Mapping[str, Any]) -> Construction:
    """Take device and dtype where no inner constructor has them."""
    return found._replace(**{name: values.get(name) for name in ('device', 'dtype') if getattr(found, name) is None})
