"""Steps of an attack as CUDA graphs: recorded once, then replayed without a call of Python or a launch per kernel.

A graph reads weights where they lie in memory, so an optimizer's update in place is seen. It is recorded again if a
weight has moved, and for other shapes, layouts, dtypes, modes and autocast settings. Where a model cannot be recorded,
its steps run as usual, and one warning says so.
"""
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype

__all__ = ['CudaRecorder', 'ModelGraphs', 'graphs_of', 'release_graphs']

Values = Sequence[Tensor | float | None]
Results = tuple[Tensor, ...]
Function = Callable[..., Results]  # of the values: tensors, numbers as tensors without axes, None


class CudaRecorder:
    """Records functions as CUDA graphs.

    All graphs of a device share one pool of memory. This is safe because nothing in the pool lives between replays:
    inputs are outside, and results are copied out.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, function: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Run a function to warm up, record it, and return its results' memory with a function that fills it again."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):  # lazy initialisation and the choice of algorithms cannot be recorded
            for _ in range(2):
                function()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # other threads, such as those that load data, may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode='thread_local'):
            results = function()
        return results, graph.replay

    def record_gradient(
            self, function: Callable[[Tensor], Tensor], x: Tensor,
    ) -> tuple[Results, Callable[[], None], Callable[[], None]]:
        """Record a function of x and its gradient: (results, gradient of results, gradient of x) and two replays.

        What the forward pass keeps for the backward pass lies in a pool of its own. The second replay may follow the
        first one any number of times.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                results = function(x)
                slope = torch.ones_like(results)
                torch.autograd.grad(results, x, slope)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        pool: Any = torch.cuda.graph_pool_handle()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=pool, stream=self._stream, capture_error_mode='thread_local'):
            results = function(x)
        with torch.cuda.graph(backward, pool=pool, stream=self._stream, capture_error_mode='thread_local'):
            # the graph is retained, or the pool would give its memory to tensors of the backward pass
            (found,) = torch.autograd.grad(results, x, slope, retain_graph=True)
        return (results.detach(), slope, found), forward.replay, backward.replay


class _Logits(torch.autograd.Function):
    """Logits and their gradient by two graphs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: '_GradientGraph') -> Tensor:
        ctx.graph, ctx.run = graph, graph.forward(x)
        ctx.save_for_backward(x)
        return graph.results[:len(x)].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.run != ctx.graph.runs:  # another batch came between
            ctx.run = ctx.graph.forward(x)
        return ctx.graph.backward(slope), None


class _GradientGraph:
    """A recorded model with its gradient for the images."""

    def __init__(self, recorder: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._x = x.detach().requires_grad_()
        tensors, self._forward, self._backward = recorder.record_gradient(function, self._x)
        self.results, self._slope, self._gradient = tensors
        self.runs = 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> int:
        """Compute the results of a batch, and return the number of this run."""
        self._x[:len(x)].copy_(x)
        self._forward()
        self.runs += 1
        return self.runs

    @torch.no_grad()
    def backward(self, slope: Tensor) -> Tensor:
        """The gradient for the images of the last run."""
        self._slope[:len(slope)].copy_(slope)
        self._slope[len(slope):].zero_()
        self._backward()
        return self._gradient[:len(slope)].clone()


@dataclass
class _Graph:
    """One recorded function: where it reads, where it writes, and how to run it."""
    inputs: list[Tensor | None]
    numbers: dict[int, float]  # the present values of inputs without axes
    results: Results
    replay: Callable[[], None]

    def __call__(self, values: Values, rows: int) -> Results:
        for i, (own, value) in enumerate(zip(self.inputs, values, strict=True)):
            if isinstance(value, Tensor) and own is not None:
                own[:rows].copy_(value)  # rows beyond keep the images of an earlier call
            elif own is not None and isinstance(value, (int, float)) and self.numbers[i] != value:
                own.fill_(value)
                self.numbers[i] = value
        self.replay()
        return tuple(result[:rows].clone() for result in self.results)


class ModelGraphs:
    """The recorded steps of one model.

    Args:
        recorder: Records functions: `CudaRecorder`, or one with the same method.
    """

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self._graphs: dict[Hashable, Any] = {}  # None: this signature cannot be recorded
        self._full: dict[Hashable, int] = {}
        self._state: Hashable = None
        self._places: list[int] = []
        self._halves: dict[torch.dtype, dict[str, Tensor]] = {}  # weights in the dtypes of autocast
        self._warned = False

    def begin_attack(self, model: nn.Module) -> None:
        """Prepare for the steps of one attack on the model, in the mode in which it is attacked.

        Drops the graphs if a weight has moved, and casts the weights to the dtype of autocast, once for all steps.
        """
        tensors = [*model.parameters(), *model.buffers()]
        places = [tensor.data_ptr() for tensor in tensors]
        if places != self._places:
            self._graphs.clear()
            self._halves.clear()
            self._places = places
        device = next((tensor.device.type for tensor in tensors), 'cpu')
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        modes = [module.training for module in model.modules()]
        tracking = [getattr(module, 'track_running_stats', None) for module in model.modules()]
        needs = [p.requires_grad for p in model.parameters()]
        self._state = half, tuple(modes), tuple(tracking), tuple(needs)
        self._cast_weights(model, half)

    @torch.no_grad()
    def _cast_weights(self, model: nn.Module, half: torch.dtype | None) -> None:
        if half is None:
            return
        weights = dict(_autocast_weights(model))
        if half not in self._halves:  # graphs read this memory, so it stays as long as they do
            self._halves[half] = {name: torch.empty_like(weight, dtype=half) for name, weight in weights.items()}
        if weights:
            torch._foreach_copy_(list(self._halves[half].values()), list(weights.values()))

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The model as a function, with the weights that `begin_attack` has cast."""
        device = next(model.parameters(), torch.empty(0)).device.type
        if not torch.is_autocast_enabled(device):
            return model
        dtype = torch.get_autocast_dtype(device)
        halves = self._halves[dtype]

        def forward(x: Tensor) -> Tensor:
            # autocast's cache of cast weights belongs to the eager pass that made it, and must not enter a graph
            with torch.autocast(device, dtype=dtype, cache_enabled=False):
                return torch.func.functional_call(model, halves, (x,))
        return forward

    def run(
            self, key: Hashable, model: nn.Module, function: Function, values: Values, *, independent: bool,
    ) -> Results:
        """Results of a function of these values, by its graph; recorded if it is new.

        Args:
            key: What the function depends on, apart from the values, the model and its state.
            model: The model that the function calls; for the text of a warning.
            function: Called with the values, numbers as tensors without axes. Returns tensors with one row per image.
            values: Tensors with one row per image, images first; numbers; None.
            independent: No image affects the result of another, so a batch may be padded: to the largest size so far,
                or a half, a quarter or an eighth of it.
        """
        images = values[0]
        assert isinstance(images, Tensor)
        rows = len(images)
        family = key, self._state, tuple(
            (v.shape[1:], v.dtype, v.device, _layout(v)) if isinstance(v, Tensor) else v is None for v in values)
        signature = family, size = family, self._size(family, rows) if independent else rows
        if signature not in self._graphs:
            self._graphs[signature] = self._recorded(model, function, values, size)
        graph = self._graphs[signature]
        return function(*_as_tensors(values)) if graph is None else graph(values, rows)

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits of images, with a gradient for them where x requires one; no image may affect another's logits."""
        forward = self.forward(model)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.run('logits', model, lambda x: (forward(x),), [x], independent=True)[0]
        family = 'gradient', self._state, x.shape[1:], x.dtype, x.device, _layout(x)
        size = self._size(family, len(x))
        if (family, size) not in self._graphs:
            padded = cast(Tensor, _padded(x.detach(), size))
            self._graphs[family, size] = self._tried(model, lambda: _GradientGraph(self.recorder, forward, padded))
        graph = self._graphs[family, size]
        return model(x) if graph is None else _Logits.apply(x, graph)

    def _size(self, family: Hashable, rows: int) -> int:
        """Size to which a batch is padded."""
        full = self._full[family] = max(rows, self._full.get(family, 0))
        return min(s for i in range(4) if (s := math.ceil(full / 2**i)) >= rows)

    def _recorded(self, model: nn.Module, function: Function, values: Values, size: int) -> _Graph | None:
        function(*_as_tensors(values))  # raises the errors of the model and the loss, as without graphs
        inputs = [_padded(value, size) if isinstance(value, Tensor) else value for value in _as_tensors(values)]
        numbers = {i: float(value) for i, value in enumerate(values) if isinstance(value, (int, float))}

        def record() -> _Graph:
            results, replay = self.recorder.record(lambda: function(*inputs))
            return _Graph(inputs, numbers, results, replay)

        return self._tried(model, record)

    def _tried(self, model: nn.Module, record: Callable[[], Any]) -> Any:
        """The graph; None, with one warning per model, if it cannot be recorded."""
        try:
            return record()
        except (RuntimeError, NotImplementedError) as error:  # what torch and CUDA raise for what cannot be recorded
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f'{type(model).__name__} cannot be recorded as a CUDA graph, so its attack runs step by step, '
                    f'which is slower: {(str(error).splitlines() or [type(error).__name__])[0]}', RuntimeWarning,
                    stacklevel=2)
            return None


_recorder = functools.cache(CudaRecorder)
_models: 'weakref.WeakKeyDictionary[nn.Module, ModelGraphs]' = weakref.WeakKeyDictionary()


def graphs_of(model: nn.Module, x: Tensor) -> ModelGraphs | None:
    """The recorded steps of a model, which live as long as the model or until `release_graphs`.

    None where steps are not recorded: not on a GPU, for images in half precision, for a model compiled by torch, which
    may record graphs itself, for a model with forward hooks, which a replay does not call, and inside of another
    recording.
    """
    if (not x.is_cuda or x.dtype not in (torch.float32, torch.float64) or hasattr(model, '_orig_mod')
            or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
            or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())):
        return None
    if model not in _models:
        _models[model] = ModelGraphs(_recorder(x.device))
    return _models[model]


def release_graphs(model: nn.Module | None = None) -> None:
    """Forget the recorded steps of a model, or of all models, and free their memory."""
    if model is None:
        _models.clear()
        _recorder.cache_clear()
    else:
        _models.pop(model, None)


def _autocast_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights that autocast casts at every call: those of plain convolutions and linear maps.

    Subclasses may compute with the weight in float32 first, so theirs are left alone.
    """
    plain = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear
    for name, module in model.named_modules():
        if type(module) in plain:
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dtype == torch.float32:
                    yield f'{name}.{own}' if name else own, parameter


def _layout(tensor: Tensor) -> bool:
    """Whether a tensor is in channels_last only."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _as_tensors(values: Values) -> list[Tensor | None]:
    images = values[0]
    assert isinstance(images, Tensor)
    dtype = compute_dtype(images.dtype)
    return [
        torch.full((), value, dtype=dtype, device=images.device) if isinstance(value, (int, float)) else value
        for value in values]


def _padded(tensor: Tensor | None, size: int) -> Tensor | None:
    """A copy with `size` rows, the last one repeated; numbers keep their form."""
    if tensor is None or not tensor.dim():
        return tensor
    layout = torch.channels_last if _layout(tensor) else torch.contiguous_format
    copy = torch.empty((size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)
    copy[:len(tensor)] = tensor
    copy[len(tensor):] = tensor[-1:]
    return copy
