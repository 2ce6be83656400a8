"""Models compiled with torch.compile for the attacks: one graph per batch size, smaller batches padded."""
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

__all__ = ['Compile', 'CompileSettings', 'CompiledModel', 'fitted', 'is_channels_last']


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """Settings of torch.compile.

    Args:
        backend: Backend of torch.compile.
        mode: Mode of torch.compile; 'reduce-overhead' and 'max-autotune' use CUDA graphs on a GPU.
        batch_size: Size to which batches are padded; by default the largest size so far.

    Raises:
        ValueError: If torch does not have this backend or mode.
    """
    backend: str = 'inductor'
    mode: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        backends, modes = torch._dynamo.list_backends(exclude_tags=()), list(torch._inductor.list_mode_options())
        if self.backend not in backends:
            raise ValueError(f'backend = {self.backend!r}: expected a backend of torch.compile: {", ".join(backends)}.')
        if self.mode is not None and self.mode not in modes:
            raise ValueError(f'compile = {self.mode!r}: expected a mode of torch.compile: {", ".join(modes)}.')
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(f'batch_size = {self.batch_size!r}: expected an integer, at least 1.')

    @classmethod
    def of(cls, value: 'Compile') -> Optional['CompileSettings']:
        """The settings of an argument `compile`: True, a mode or settings; None for False. Else ValueError."""
        if value is None or value is False or isinstance(value, CompileSettings):
            return value or None
        if value is True or isinstance(value, str):
            return cls(mode=None if value is True else value)
        raise ValueError(
            f"compile = {value!r}: expected True, False or a mode of torch.compile such as 'reduce-overhead'.")


Compile = bool | str | CompileSettings | None

# of each model, the largest batch of each kind; FAILED if it cannot be compiled
_models: 'weakref.WeakKeyDictionary[nn.Module, dict[Hashable, int]]' = weakref.WeakKeyDictionary()
FAILED = 'failed'


@functools.cache
def _compiled(backend: str, mode: str | None) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)
    return torch.compile(forward, fullgraph=True, dynamic=False, backend=backend, mode=mode)


class CompiledModel(nn.Module):
    """A model compiled for a few batch sizes; smaller batches are padded with copies of their last image.

    Gradients for the images are available, more than once too. Calls that need gradients for parameters run uncompiled,
    and so do all calls in training mode, where the images of a batch affect each other. If compilation fails, all
    calls do, and one warning says so. All objects for one model share the graphs.

    Args:
        model: Maps images to logits.
        compile: True, a mode of torch.compile, or settings.
        halves: Also compile for a half, a quarter and an eighth of the batch, when needed.
    """

    def __init__(self, model: nn.Module, *, compile: Compile = True, halves: bool = False) -> None:
        super().__init__()
        while (inner := model._modules.get('model' if isinstance(model, CompiledModel) else '_orig_mod')) is not None:
            model = inner
        self.model, self.training, self.halves = model, model.training, halves
        self.settings = CompileSettings.of(compile)
        self._known = _models.setdefault(model, {})

    def forward(self, x: Tensor) -> Tensor:
        settings, known = self.settings, self._known
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())
        trains = learns or any(module.training for module in self.model.modules())
        if settings is None or FAILED in known or trains or not len(x):
            return self.model(x)
        kind = settings, x.shape[1:], x.dtype
        full = known[kind] = max(len(x), settings.batch_size or 0, known.get(kind, 0))
        size = min(s for i in range(4 if self.halves else 1) if (s := math.ceil(full / 2**i)) >= len(x))
        try:
            # limits of recompilation are lifted, as timm.optim does: they count the graphs of all models together
            with (functorch_config.patch(donated_buffer=False),  # allows a second backward pass
                  dynamo_config.patch(cache_size_limit=10**6, accumulated_cache_size_limit=10**6),
                  warnings.catch_warnings()):
                # torch reads .grad of images that are not leaves, and warns about that itself
                warnings.filterwarnings('ignore', message='The .grad attribute of a Tensor', category=UserWarning)
                torch.compiler.cudagraph_mark_step_begin()
                logits = _compiled(settings.backend, settings.mode)(self.model, fitted(x, size))[:len(x)]
                if logits.requires_grad and (size, kind) not in known:  # the backward pass is compiled only now
                    torch.autograd.grad(logits, x, torch.zeros_like(logits), retain_graph=True)
                    known[size, kind] = size
                return logits.clone() if x.is_cuda else logits  # CUDA graphs of torch overwrite them in the next call
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers, backends and drivers raise errors of their own classes
            logits = self.model(x)  # an error that is not the compiler's is raised again here
            known[FAILED] = 1
            warnings.warn(
                f'{type(self.model).__name__} runs uncompiled, because compilation failed ({type(error).__name__}: '
                f'{(str(error).splitlines() or [""])[0]}).', RuntimeWarning, stacklevel=2)
            return logits


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor is in channels_last only."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def fitted(x: Tensor, size: int) -> Tensor:
    """The images padded to `size` with copies of the last one, with the strides that torch's guards expect."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    if missing := size - len(x):
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    strides = torch.empty(x.shape, device='meta', memory_format=layout).stride()
    return x if x.stride() == strides else x.new_empty_strided(x.shape, strides).copy_(x)
