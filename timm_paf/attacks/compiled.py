"""Models and attack steps compiled with torch.compile, one graph per batch shape.

A graph is compiled at the first batch of its shape and kept as long as the model exists; all attacks on the model share
it. Batches of other sizes are padded to the size of a graph. Settings that can change between calls are inputs of the
graph. torch guards each graph, so a changed model gets a new one.
"""
import itertools
import math
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import RecompileError
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

__all__ = ['Compile', 'CompileSettings', 'CompiledModel', 'Graph', 'bare_model', 'find_graph']

_MEANT = (RecompileError,)  # raised only if the user asked torch for it
_VERSIONS = 8  # torch's default limit of recompilations, which timm.optim removes; a changing model would never run


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
        backends = torch._dynamo.list_backends(exclude_tags=())
        if self.backend not in backends:
            raise ValueError(
                f'backend = {self.backend!r}: expected a backend of torch.compile: {", ".join(backends)}.')
        if self.mode is not None:
            modes = list(torch._inductor.list_mode_options())
            if self.mode not in modes:
                raise ValueError(f'compile = {self.mode!r}: expected a mode of torch.compile: {", ".join(modes)}.')
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(f'batch_size = {self.batch_size!r}: expected an integer, at least 1.')

    @property
    def cuda_graphs(self) -> bool:
        """Whether a GPU runs CUDA graphs, whose results the next call overwrites."""
        options = torch._inductor.list_mode_options().get(self.mode or 'default', {})
        return self.backend == 'cudagraphs' or options.get('triton.cudagraphs', inductor_config.triton.cudagraphs)

    @classmethod
    def of(cls, value: 'Compile') -> Optional['CompileSettings']:
        """Read an argument `compile`: False or None for no compilation, True, a mode, or settings.

        Raises:
            ValueError: If it is anything else.
        """
        if value is None or value is False:
            return None
        if isinstance(value, CompileSettings):
            return value
        if value is True or isinstance(value, str):
            return cls(mode=None if value is True else value)
        raise ValueError(
            f"compile = {value!r}: expected True, False or a mode of torch.compile such as 'reduce-overhead'.")


Compile = bool | str | CompileSettings | None


@dataclass
class _Graphs:
    """The graphs of one model.

    Attributes:
        made: Graphs, including those that failed to compile.
        full: Size to which batches are padded, for each family of graphs that differ only in size.
        warned: Whether a failure has been reported.
    """
    made: dict[Hashable, 'Graph'] = field(default_factory=dict)
    full: dict[Hashable, int] = field(default_factory=dict)
    warned: bool = False


_graphs: 'weakref.WeakKeyDictionary[nn.Module, _Graphs]' = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def bare_model(model: nn.Module) -> nn.Module:
    """A model without its wrappers `CompiledModel` and torch.compile."""
    while True:
        inner = model.model if isinstance(model, CompiledModel) else getattr(model, '_orig_mod', None)
        if inner is None:
            return model
        model = inner


class Graph:
    """A compiled function for batches of up to one size.

    Args:
        function: Called with (model, *tensors) of the full size.
        size: The full size.
        layout: Memory format of images.
        settings: Settings of torch.compile.
        copies: Copy the results, because the next call overwrites them.

    Attributes:
        failed: Compilation failed; calls run uncompiled.
    """

    def __init__(
            self,
            function: Callable,
            size: int,
            layout: torch.memory_format,
            settings: CompileSettings,
            *,
            copies: bool,
    ) -> None:
        self.plain, self.compiled = function, _compiled(function, settings)
        self.size, self.layout, self.copies = size, layout, copies
        self.failed = False

    def __call__(self, model: nn.Module, batch: Sequence[Tensor | None], *numbers: Tensor) -> tuple[Tensor, ...]:
        """Compute the results of a batch, padded with copies of its last image.

        Args:
            model: The model, from `bare_model`.
            batch: Tensors with one row per image, or None.
            *numbers: Tensors that are not per image.

        Returns:
            The function's results, (rows, …) each.
        """
        n = next(len(t) for t in batch if t is not None)
        if self.copies:
            torch.compiler.cudagraph_mark_step_begin()
        results = self._computed(model, *(None if t is None else self._fitted(t) for t in batch), *numbers)
        results = results if isinstance(results, tuple) else (results,)
        if self.copies:
            results = tuple(result.clone() for result in results)
        return results if n == self.size else tuple(result[:n] for result in results)

    def _computed(self, model: nn.Module, *tensors: Tensor | None) -> Any:
        if not self.failed:
            try:
                with dynamo_config.patch(cache_size_limit=_VERSIONS):
                    return self.compiled(model, *tensors)
            except Exception as error:  # compilers, backends and drivers raise errors of their own classes
                if isinstance(error, (torch.OutOfMemoryError, *_MEANT)):
                    raise
                results = self.plain(model, *tensors)  # an error that is not the compiler's is raised again here
                self.failed = True
                _warn(model, error)
                return results
        return self.plain(model, *tensors)

    def _fitted(self, tensor: Tensor) -> Tensor:
        """The tensor padded to the full size, with the strides that torch's guards expect."""
        shape = (self.size, *tensor.shape[1:])
        layout = self.layout if tensor.dim() == 4 else torch.contiguous_format
        strides = torch.empty(shape, device='meta', memory_format=layout).stride()
        missing = self.size - len(tensor)
        if not missing and tensor.stride() == strides:
            return tensor
        if missing:
            tensor = torch.cat([tensor, tensor[-1:].expand(missing, *shape[1:])])
        return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def find_graph(
        model: nn.Module,
        make: Callable[[], Callable],
        key: Hashable,
        batch: Sequence[Tensor | None],
        *numbers: Tensor,
        settings: CompileSettings,
        independent: bool,
        halves: bool = False,
) -> Graph | None:
    """The graph for a batch; compiled and run once if it is new.

    Args:
        model: The model, from `bare_model`, in the mode and precision of the calls.
        make: Makes the function (model, *batch, *numbers) -> tensors with one row per image.
        key: What the graph depends on, in addition to shapes, dtypes, device, autocast and settings.
        batch: As for calls of `Graph`, images first.
        *numbers: As for calls of `Graph`.
        settings: Settings of torch.compile.
        independent: The result of an image does not depend on the other images, so the batch may be padded.
        halves: Pad small batches to a half, a quarter or an eighth of the full size instead.

    Returns:
        The graph; None if the batch cannot be padded, or if compilation failed, which one warning per model reports.
    """
    images = batch[0]
    assert images is not None
    known = _graphs.setdefault(model, _Graphs())
    channels_last = images.dim() == 4 and not images.is_contiguous() and images.is_contiguous(
        memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = images.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    gradients = torch.is_grad_enabled(), *(t is not None and t.requires_grad for t in batch)
    family = (
        key, settings, layout, autocast, gradients,
        *(None if t is None else (t.shape[1:], t.dtype, t.device) for t in batch))
    n = len(images)
    full = settings.batch_size or known.full.get(family, n)
    if independent or n == full:
        full = known.full[family] = max(n, full)
    elif family not in known.full:
        known.full[family] = full
    if not n or (n != full and not independent):
        return None
    sizes = [math.ceil(full / 2**i) for i in range(4 if halves and independent else 1)]
    size = min(s for s in sizes if s >= n)
    graph = known.made.get((family, size))
    if graph is None:
        graph = known.made[family, size] = Graph(
            make(), size, layout, settings, copies=device == 'cuda' and settings.cuda_graphs)
        graph(model, batch, *numbers)
    return None if graph.failed else graph


def _warn(model: nn.Module, error: Exception) -> None:
    known = _graphs.setdefault(model, _Graphs())
    if not known.warned:
        known.warned = True
        warnings.warn(
            f'{type(model).__name__} runs uncompiled, because compilation failed ({type(error).__name__}: '
            f'{(str(error).splitlines() or [""])[0]}).', RuntimeWarning, stacklevel=2)


def _compiled(function: Callable, settings: CompileSettings) -> Callable:
    """torch.compile of one graph, with its own guards and its own count of recompilations.

    torch stores compiled code with the code object of a function, which all functions made by one `def` share.
    """
    code = function.__code__
    name = f'{code.co_name}_{next(_numbers)}'
    own = types.FunctionType(
        code.replace(co_name=name), function.__globals__, name, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, backend=settings.backend, mode=settings.mode)


class CompiledModel(nn.Module):
    """A model compiled for a few batch sizes; other batches are padded.

    Gradients for the images are available, more than once too. Calls that need gradients for parameters run uncompiled,
    and so do all calls in training mode, where the images of a batch affect each other.

    Args:
        model: Maps images to logits.
        compile: True, a mode of torch.compile, or settings.
        halves: Also compile for a half, a quarter and an eighth of the batch, when needed.
    """

    def __init__(self, model: nn.Module, *, compile: Compile = True, halves: bool = False) -> None:
        super().__init__()
        self.model = bare_model(model)
        self.training = self.model.training
        self.settings = CompileSettings.of(compile)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())
        if self.settings is None or trained or any(module.training for module in self.model.modules()):
            return self.model(x)
        with functorch_config.patch(donated_buffer=False), warnings.catch_warnings():  # allows a second backward pass
            # torch reads .grad of images that are not leaves, and warns about that itself
            warnings.filterwarnings('ignore', message='The .grad attribute of a Tensor', category=UserWarning)
            graph = find_graph(
                self.model, _forward, 'forward', [x], settings=self.settings, halves=self.halves, independent=True)
            return self.model(x) if graph is None else graph(self.model, [x])[0]


def _forward() -> Callable[[nn.Module, Tensor], Any]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)
    return forward
