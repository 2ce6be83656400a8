"""Networks and steps of attacks as graphs of torch.compile, each for one shape of batch.

A graph is made when a shape is first met and kept as long as its model lives; all attacks on the model share it.
Batches of other sizes are filled up to a size that there is a graph for. No number of an attack that may change between
calls is part of a graph. torch guards each graph, so that a model that was changed gets a new one.
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

_MEANT = (RecompileError,)  # of someone who has asked torch for it
_VERSIONS = 8  # of a graph, as torch has it: timm.optim lifts that limit, and a model that changes would never run


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """How something is compiled.

    Args:
        backend: As torch.compile's.
        mode: As torch.compile's; 'reduce-overhead' and 'max-autotune' use CUDA graphs on a GPU.
        batch_size: Size that batches are filled up to; by default that of the largest one so far.

    Raises:
        ValueError: If torch knows no such backend or mode.
    """
    backend: str = 'inductor'
    mode: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        backends = torch._dynamo.list_backends(exclude_tags=())
        if self.backend not in backends:
            raise ValueError(
                f'backend = {self.backend!r}: torch.compile has none of that name; expected {", ".join(backends)}.')
        if self.mode is not None:
            modes = list(torch._inductor.list_mode_options())
            if self.mode not in modes:
                raise ValueError(f'compile = {self.mode!r}: torch.compile has {", ".join(modes)}.')
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ValueError(f'batch_size = {self.batch_size!r}: expected a whole number, 1 or more.')

    @property
    def cuda_graphs(self) -> bool:
        """Whether a GPU runs what is compiled as CUDA graphs, whose results the next call writes over."""
        options = torch._inductor.list_mode_options().get(self.mode or 'default', {})
        return self.backend == 'cudagraphs' or options.get('triton.cudagraphs', inductor_config.triton.cudagraphs)

    @classmethod
    def of(cls, value: 'Compile') -> Optional['CompileSettings']:
        """The settings that an argument `compile` stands for: False for none, True, a mode, or settings.

        Raises:
            ValueError: If it is something else.
        """
        if value is None or value is False:
            return None
        if isinstance(value, CompileSettings):
            return value
        if value is True or isinstance(value, str):
            return cls(mode=None if value is True else value)
        raise ValueError(f"compile = {value!r}: expected True, False or a mode of torch.compile, 'reduce-overhead'.")


Compile = bool | str | CompileSettings | None


@dataclass
class _Graphs:
    """What was compiled of one model.

    Attributes:
        made: Graphs, those included that could not be compiled.
        full: The size that batches are filled up to, of each family of graphs that differ in size alone.
        warned: Whether a failure has been told of.
    """
    made: dict[Hashable, 'Graph'] = field(default_factory=dict)
    full: dict[Hashable, int] = field(default_factory=dict)
    warned: bool = False


_graphs: 'weakref.WeakKeyDictionary[nn.Module, _Graphs]' = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def bare_model(model: nn.Module) -> nn.Module:
    """A model without what compiles it: a `CompiledModel`, torch.compile."""
    while True:
        inner = model.model if isinstance(model, CompiledModel) else getattr(model, '_orig_mod', None)
        if inner is None:
            return model
        model = inner


class Graph:
    """A compiled function for batches of up to one size.

    Args:
        function: Called with (model, *tensors) of the whole size.
        size: That size.
        layout: Memory format of images.
        settings: How it is compiled.
        copies: Results are written over by the next call and have to be copied.

    Attributes:
        failed: It could not be compiled; it computes all the same.
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
        """Compute, on a batch that is filled up with copies of its last image.

        Args:
            model: The model, as `bare_model` has it.
            batch: Tensors of one row an image, or None.
            *numbers: Further tensors.

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
            except Exception as error:  # compilers, their backends and the driver each have their own
                if isinstance(error, (torch.OutOfMemoryError, *_MEANT)):
                    raise
                results = self.plain(model, *tensors)  # an error that is not the compiler's comes again
                self.failed = True
                _warn(model, error)
                return results
        return self.plain(model, *tensors)

    def _fitted(self, tensor: Tensor) -> Tensor:
        """The tensor with all its rows, and with the strides that torch's guards expect."""
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
    """The graph for a batch; compiled and tried out if there is none.

    Args:
        model: As `bare_model` has it, in the mode and precision that it will be called in.
        make: Makes the function (model, *batch, *numbers) -> tensors of one row an image.
        key: What it depends on beside shapes, dtypes, device, autocast and settings.
        batch: As `Graph` is called, images first.
        *numbers: As `Graph` is called.
        settings: How it is compiled.
        independent: An image's results do not depend on the others, so that the batch may be filled up.
        halves: Small batches are not filled up to the whole size, but to the half, the quarter or the eighth of it.

    Returns:
        The graph; None where there can be none, for a size that depends on its batch, or because compiling failed, of
        which one warning for each model tells.
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
            f'{type(model).__name__} runs without compiling, since that failed ({type(error).__name__}: '
            f'{(str(error).splitlines() or [""])[0]}).', RuntimeWarning, stacklevel=2)


def _compiled(function: Callable, settings: CompileSettings) -> Callable:
    """torch.compile of one graph, whose guards and counts of recompilations are its own.

    torch keeps what it has compiled with the code of a function, which all functions that a `def` makes share.
    """
    code = function.__code__
    name = f'{code.co_name}_{next(_numbers)}'
    own = types.FunctionType(
        code.replace(co_name=name), function.__globals__, name, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, backend=settings.backend, mode=settings.mode)


class CompiledModel(nn.Module):
    """A model that is compiled for few sizes of batches, to which others are filled up.

    Gradients to the images can be taken, also more than once. What asks for gradients to parameters goes through the
    model as it is, and so does everything in training, where the images of a batch hang together.

    Args:
        model: Maps images to logits.
        compile: As `PGD` has it.
        halves: Make graphs for the half, the quarter and the eighth of a batch as well, once they are needed.
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
        with functorch_config.patch(donated_buffer=False), warnings.catch_warnings():  # a second backward pass works
            # torch looks whether an image that is no leaf has a gradient, and warns itself of that
            warnings.filterwarnings('ignore', message='The .grad attribute of a Tensor', category=UserWarning)
            graph = find_graph(
                self.model, _forward, 'forward', [x], settings=self.settings, halves=self.halves, independent=True)
            return self.model(x) if graph is None else graph(self.model, [x])[0]


def _forward() -> Callable[[nn.Module, Tensor], Any]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)
    return forward
