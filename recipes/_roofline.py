"""What a device can do, measured beside what is compared with it, and what a network asks of it at the least."""
import copy
import functools
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from _benchmarking import Figure, seconds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['PRECISIONS', 'Machine', 'Work', 'math_mode', 'work_of']

# dtype that matrix products are computed in; tf32 is float32 with the products' inputs rounded to 10 bits
PRECISIONS = {'fp32': torch.float32, 'tf32': torch.float32, 'bf16': torch.bfloat16}


@contextmanager
def math_mode(precision: str) -> Iterator[None]:
    """Inside, float32 matrix products and convolutions on a GPU are in TF32 if 'tf32' is asked for, else exact.

    By the switches that every supported torch has; some releases warn that there are newer ones.
    """
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Please use the new API settings to control TF32')
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Work(NamedTuple):
    """What one image costs at the least: FLOPs of convolutions and matrix products, and elements that these move.

    Attributes:
        forward: FLOPs of a forward pass.
        to_input: Of a backward pass to the input alone, as an attack needs it.
        to_weights: Of a backward pass to the weights.
        elements: What the layers with weights read and write in a pass, were everything between them fused into them.
        weights: Elements of their weights, read once a pass whatever the batch.
    """
    forward: int
    to_input: int
    to_weights: int
    elements: int
    weights: int

    def floor(self, images: int, passes: Sequence[int], size: int) -> tuple[float, float]:
        """FLOPs and bytes of so many passes forward, back to the input and back to the weights.

        Args:
            images: Of a batch.
            passes: How many of each kind.
            size: Bytes of an element.
        """
        forward, to_input, to_weights = passes
        flops = forward * self.forward + to_input * self.to_input + to_weights * self.to_weights
        # the gradients of the weights are a pass of their own over the inputs and the gradients of the outputs
        count = forward + to_input + 2 * to_weights
        return float(images * flops), float(size * count * (images * self.elements + self.weights))


def work_of(model: nn.Module, image_shape: Sequence[int]) -> Work:
    """The work of a network, counted by `torch.utils.flop_counter` on the meta device, where nothing is computed."""
    model = copy.deepcopy(model).to('meta').eval()
    x = torch.empty(1, *image_shape, device='meta', requires_grad=True)
    label = torch.zeros(1, dtype=torch.long, device='meta')
    moved = []
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, given, out: moved.append(given[0].numel() + out.numel()))
             for layer in layers]

    def count(action: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            action()
        return counter.get_total_flops()

    parameters = [p.requires_grad_() for p in model.parameters()]
    forward = count(lambda: model(x))
    for hook in hooks:
        hook.remove()
    losses = [F.cross_entropy(model(x), label) for _ in range(2)]
    return Work(
        forward, count(lambda: torch.autograd.grad(losses[0], x)),
        count(lambda: torch.autograd.grad(losses[1], parameters, allow_unused=True)), sum(moved),
        sum(layer.weight.numel() for layer in layers))


class Machine:
    """What the device can do: a matrix product in each precision and a copy, measured in every round with the rest.

    Args:
        device: The device.
        precisions: Names of `PRECISIONS`.
        size: Rows of the square matrices; as large as the device needs to show its rate if None.
    """

    def __init__(self, device: torch.device, precisions: Sequence[str], size: int | None = None) -> None:
        self.device = device
        on_gpu = device.type == 'cuda'
        self.size = size or (8192 if on_gpu else 1024)
        self.repeat = 10 if on_gpu else 1
        self.pairs = {
            name: [torch.randn(self.size, self.size, device=device).to(PRECISIONS[name]) for _ in range(2)]
            for name in dict.fromkeys(precisions)}
        self.block = torch.randn((2**30 if on_gpu else 2**26) // 4, device=device)
        self.target = torch.empty_like(self.block)
        self.products: dict[str, list[float]] = {name: [] for name in self.pairs}
        self.copies: list[float] = []
        self.round()  # to warm up
        for values in (*self.products.values(), self.copies):
            values.clear()

    def round(self) -> None:
        """Measure once."""
        for name, pair in self.pairs.items():
            with math_mode(name), torch.no_grad():
                taken = seconds(functools.partial(self._multiply, *pair), self.device) / self.repeat
            self.products[name].append(2 * self.size**3 / taken)
        taken = seconds(lambda: [self.target.copy_(self.block) for _ in range(self.repeat)], self.device) / self.repeat
        self.copies.append(2 * 4 * self.block.numel() / taken)

    def _multiply(self, a: Tensor, b: Tensor) -> None:
        for _ in range(self.repeat):
            a @ b

    def shares(self, times: Sequence[float], flops: float, moved: float, precision: str) -> list[float]:
        """In each round, the time that FLOPs or bytes need at the measured rates, the longer one, over the time."""
        return [
            max(flops / rate, moved / bandwidth) / taken
            for rate, bandwidth, taken in zip(self.products[precision], self.copies, times, strict=True)]

    def figures(self) -> list[Figure]:
        """The rates."""
        return [
            *(Figure(f'matrix product, {name}', [v / 1e12 for v in values], 'TFLOP/s')
              for name, values in self.products.items()),
            Figure('copy', [v / 1e9 for v in self.copies], 'GB/s')]

    def __str__(self) -> str:
        return 'measured in the same rounds: ' + ', '.join(
            f'{f.name} {statistics.median(f.values):.3g} {f.unit}' for f in self.figures())
