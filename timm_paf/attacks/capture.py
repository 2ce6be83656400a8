"""Steps of an attack as CUDA graphs: recorded once, then replayed without a call of Python or a launch per kernel.

A graph reads weights where they lie in memory, so an optimizer's update in place is seen. It is recorded again if a
weight or a layer was replaced, and for other shapes, layouts, dtypes, modes and precisions. Each graph is compared once
with the steps it replaces. Where a model cannot be recorded, its steps run as usual, and one warning says so.
"""
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from timm_paf._dtypes import compute_dtype, uses_tf32
from timm_paf.attacks.compiled import CompiledModel, fitted, is_channels_last
from timm_paf.attacks.recorder import CudaRecorder, Results

__all__ = ['ModelGraphs', 'graphs_of', 'release_graphs']

Values = Sequence[Tensor | float | None]
Function = Callable[..., Results]  # of the values: tensors, numbers as tensors without axes, None

OFTEN = 3  # a batch size that begins so many attacks is recorded, although it would fit into a larger one
MOST_SIZES, MOST_GRAPHS = 4, 32  # of such sizes, and of all graphs of a model
DIFFERENCE = 0.25  # from eager results, relative; rounding in bfloat16 stays far below, a wrong gradient far above


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
        self._sizes: dict[Hashable, set[int]] = {}  # full sizes of batches
        self._begun: dict[Hashable, int] = {}  # number of attacks that begin with a batch of a size
        self._begins = False  # whether the next batch is the first one of an attack
        self._state: Hashable = None
        self._places: list[Any] = []
        self._warned = False

    def begin_attack(self, model: nn.Module) -> None:
        """Prepare for the steps of one attack on the model, in the mode in which it is attacked.

        Drops the graphs if a weight or a layer was replaced.
        """
        modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
        places = [tensor.data_ptr() for tensor in tensors] + [(id(module), type(module)) for module in modules]
        if places != self._places or len(self._graphs) > MOST_GRAPHS:
            self._graphs.clear()
            self._places = places
        self._state = (
            _autocast_dtype(model), tuple(module.training for module in modules),
            tuple(getattr(module, 'track_running_stats', None) for module in modules),
            tuple(p.requires_grad for p in model.parameters()), uses_tf32(), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled())
        self._begins = True

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The model as a function that can be recorded under autocast."""
        dtype = _autocast_dtype(model)
        if dtype is None:
            return model
        device = next(model.parameters()).device.type

        def forward(x: Tensor) -> Tensor:
            # autocast's cache of cast weights belongs to the eager pass that made it, and must not enter a graph
            with torch.autocast(device, dtype=dtype, cache_enabled=False):
                return model(x)
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
            independent: No image affects the result of another, so a batch may be padded: to a full size, or a half,
                a quarter or an eighth of one. Full sizes are the largest one so far, and those of many attacks.
                Otherwise a batch of another size than the first one runs without a graph, unless many attacks have it.
        """
        images = values[0]
        assert isinstance(images, Tensor)
        rows = len(images)
        family = key, self._state, tuple(
            (v.shape[1:], v.dtype, v.device, is_channels_last(v)) if isinstance(v, Tensor) else v is None
            for v in values)
        size = self._size(family, rows, independent=independent)
        if size is not None and (family, size) not in self._graphs:
            self._graphs[family, size] = self._recorded(model, function, values, size)
        graph = self._graphs.get((family, size))
        return function(*_as_tensors(values)) if graph is None else graph(values, rows)

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits of images, with a gradient for them where x requires one; no image may affect another's logits."""
        forward = self.forward(model)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.run('logits', model, lambda x: (forward(x),), [x], independent=True)[0]
        family = 'gradient', self._state, x.shape[1:], x.dtype, x.device, is_channels_last(x)
        size = self._size(family, len(x), independent=True)
        if (family, size) not in self._graphs:
            padded = cast(Tensor, _padded(x.detach(), size))
            self._graphs[family, size] = self._recorded_gradient(model, forward, padded)
        graph = self._graphs[family, size]
        return model(x) if graph is None else _Logits.apply(x, graph)

    def _size(self, family: Hashable, rows: int, *, independent: bool) -> Any:
        """Size to which a batch is padded; None if its size is not to be recorded."""
        begun = self._begun[family, rows] = self._begun.get((family, rows), 0) + self._begins
        self._begins = False
        sizes = self._sizes.setdefault(family, set())
        if not sizes or (independent and rows > max(sizes)) or (begun == OFTEN and len(sizes) < MOST_SIZES):
            sizes.add(rows)
        if not independent:
            return rows if rows in sizes else None
        return min(s for full in sizes for i in range(4) if (s := math.ceil(full / 2**i)) >= rows)

    def _recorded(self, model: nn.Module, function: Function, values: Values, size: int) -> _Graph | None:
        inputs = [_padded(value, size) if isinstance(value, Tensor) else value for value in _as_tensors(values)]
        numbers = {i: float(value) for i, value in enumerate(values) if isinstance(value, (int, float))}
        expected = function(*inputs)  # raises the errors of the model and the loss, as without graphs
        images = cast(Tensor, values[0])

        def record() -> _Graph:
            results, replay = self.recorder.record(lambda: function(*inputs))
            graph = _Graph(inputs, numbers, results, replay)
            _compare(graph(values, len(images)), expected, images)
            return graph

        return self._tried(model, record)

    def _recorded_gradient(
            self, model: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> _GradientGraph | None:
        leaf = x.clone().requires_grad_()
        expected = function(leaf)
        slope = torch.ones_like(expected)
        (gradient,) = torch.autograd.grad(expected, leaf, slope)

        def record() -> _GradientGraph:
            graph = _GradientGraph(self.recorder, function, x)
            graph.forward(x)
            _compare((graph.results, graph.backward(slope)), (expected.detach(), gradient), torch.zeros_like(x))
            return graph

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

    None where steps are not recorded: not on a GPU, for images in half precision, on another stream than the default
    one, inside of another recording, for weights on several devices, and for a model with parts that a recording cannot
    hold: compiled ones, which may record graphs themselves, forward hooks, which a replay does not call, and copies on
    several devices.
    """
    if (not x.is_cuda or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling()
            or torch.cuda.is_current_stream_capturing()
            or torch.cuda.current_stream(x.device) != torch.cuda.default_stream(x.device)
            or any(p.device != x.device for p in model.parameters())
            or any(module._forward_hooks or module._forward_pre_hooks or _is_compiled(module)
                   or isinstance(module, nn.DataParallel) for module in model.modules())):
        return None
    recorder = _recorder(x.device)
    if model not in _models or _models[model].recorder is not recorder:  # a model may move to another device
        _models[model] = ModelGraphs(recorder)
    return _models[model]


def release_graphs(model: nn.Module | None = None) -> None:
    """Forget the recorded steps of a model, or of all models, and free their memory."""
    if model is None:
        _models.clear()
        _recorder.cache_clear()
    else:
        _models.pop(model, None)


def _autocast_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of autocast on the model's device; None without autocast."""
    device = next(model.parameters(), torch.empty(0)).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled by torch; its parts may be although it is not."""
    return isinstance(module, CompiledModel) or '_orig_mod' in module._modules or (
        module._compiled_call_impl is not None)


def _compare(found: Results, expected: Results, images: Tensor) -> None:
    """Raise RuntimeError if results of a graph are not those of the function that it replaces.

    Images are compared by their distance from those at the start of the step; losses follow from the logits.
    """
    for ours, eager in zip(found, expected, strict=True):
        eager = eager[:len(images)]
        start = images if eager.shape == images.shape else torch.zeros_like(eager)
        if eager.dim() > 1 and bool((ours - eager).abs().sum() > DIFFERENCE * (eager - start).abs().sum()):
            raise RuntimeError('its results differ from those of the same steps without a graph')


def _as_tensors(values: Values) -> list[Tensor | None]:
    images = values[0]
    assert isinstance(images, Tensor)
    dtype = compute_dtype(images.dtype)
    return [
        torch.full((), value, dtype=dtype, device=images.device) if isinstance(value, (int, float)) else value
        for value in values]


def _padded(tensor: Tensor | None, size: int) -> Tensor | None:
    """A copy with `size` rows; numbers keep their form."""
    return tensor if tensor is None or not tensor.dim() else fitted(tensor, size).clone()
