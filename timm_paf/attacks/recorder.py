"""Recording of functions as CUDA graphs."""
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ['CudaRecorder', 'Results']

Results = tuple[Tensor, ...]


class CudaRecorder:
    """Records functions as CUDA graphs.

    All graphs of a device share one pool of memory. This is safe because nothing in the pool lives between replays,
    which all run on the device's default stream: inputs are outside, and results are copied out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()  # one recording at a time

    def record(self, function: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Run a function to warm up, record it, and return its results' memory with a function that fills it again."""
        with self._lock:
            self._warm_up(function)
            graph = torch.cuda.CUDAGraph()
            with self._recording(graph, self._pool):
                results = function()
            return results, graph.replay

    def record_gradient(
            self, function: Callable[[Tensor], Tensor], x: Tensor,
    ) -> tuple[Results, Callable[[], None], Callable[[], None]]:
        """Record a function of x and its gradient: (results, gradient of results, gradient of x) and two replays.

        What the forward pass keeps for the backward pass lies in a pool of its own. The second replay may follow the
        first one any number of times.
        """
        def both() -> Tensor:
            results = function(x)
            slope = torch.ones_like(results)
            torch.autograd.grad(results, x, slope)
            return slope

        with self._lock:
            slope = self._warm_up(both)
            pool: Any = torch.cuda.graph_pool_handle()
            forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with self._recording(forward, pool):
                results = function(x)
            with self._recording(backward, pool):
                # the graph is retained, or the pool would give its memory to tensors of the backward pass
                (found,) = torch.autograd.grad(results, x, slope, retain_graph=True)
            return (results.detach(), slope, found), forward.replay, backward.replay

    def _warm_up(self, function: Callable[[], Any]) -> Any:
        """Run a function on the stream of recordings, since lazy initialisation cannot be recorded."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(2):
                    results = function()
        finally:
            current.wait_stream(self._stream)  # whatever is freed now may still be in use there
        return results

    @contextlib.contextmanager
    def _recording(self, graph: Any, pool: Any) -> Iterator[None]:
        # other threads, such as those that load data, may use the device meanwhile
        record = functools.partial(torch.cuda.graph, stream=self._stream, capture_error_mode='thread_local')
        try:
            with record(graph, pool=pool):
                yield
        except Exception:
            # torch leaves the pool of a failed recording open, and the random generator in the state of a recording
            with contextlib.suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(self.device.index, pool)
            self._pool = torch.cuda.graph_pool_handle()
            with record(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=self.device)
            raise
