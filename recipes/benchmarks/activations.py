"""Time and memory of the activations, compared with SiLU and with a copy of the same size.

    python recipes/benchmarks/activations.py --output output/activations.md

An activation is computed in these ways: fused, the default; reference, `timm_paf.kernels.use('reference')`; formula, as
in papers and published modules, with no protection against rounding errors or overflow; compiled, the formula under
torch.compile.

Values and gradients are compared with float64 before anything is timed. Several inputs take turns; together they are
larger than the caches. `÷ copy` is the time divided by that of copying as much memory as the pass has to read and
write. Memory is in tensors of the size of x: what autograd keeps in addition to x, and the most that forward and
backward pass allocate.

Host time is what a call of a module costs Python and torch: on a small tensor, without waiting for the GPU. On a CPU it
is that of the calls that a GPU would get, with the launches of Triton's kernels replaced by nothing.

On a GPU use large tensors: `--shape 256 160 32 32` is the first stage of `wrn28_10`.
"""
import argparse
import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from _plain_loop import FORMULAS
from _timing import Table, kept_bytes, new_parser, peak_bytes, ratios, run, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf import kernels, shared
from timm_paf.activations import ACTIVATIONS, functional

WAYS = ('fused', 'reference', 'formula', 'compiled')
CACHES = {'cpu': 64 * 2**20, 'cuda': 256 * 2**20}  # bytes; all inputs together are larger
# tensors that have to move
PASSES = {'forward': 2, 'forward + all gradients': 5, 'forward + gradient of x': 5, 'gradient of x alone': 3}
MEASURES = ('time', 'memory', 'host')


class Way(NamedTuple):
    """A way to compute an activation: `function(x, *parameters)`."""
    name: str
    way: str
    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()

    def kernels(self) -> kernels.use:
        return kernels.use('reference' if self.way == 'reference' else 'auto')

    def run(self, which: str, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Compute one pass: the value, or gradients."""
        with self.kernels(), torch.set_grad_enabled(which != 'forward'):
            y = self.function(x, *self.parameters)
            inputs = [x, *self.parameters] if which == 'forward + all gradients' else [x]
            return (y,) if which == 'forward' else torch.autograd.grad(y, inputs, grad.to(y.dtype))

    def __str__(self) -> str:
        return f'{self.name}, {self.way}'


def all_ways(names: Sequence[str], wanted: Sequence[str], device: str) -> list[Way]:
    """SiLU, ReLU, and every activation in every way that is wanted."""
    found = [Way('silu', 'torch', F.silu), Way('relu', 'torch', F.relu)]
    for name, way in itertools.product(names, wanted):
        function, values = FORMULAS[name]
        if way != 'formula':
            function = torch.compile(function, dynamic=False) if way == 'compiled' else getattr(functional, name)
        found.append(Way(name, way, function, tuple(
            torch.tensor([value], device=device, requires_grad=True) for value in values)))
    return found


def check(way: Way, x: Tensor, grad: Tensor) -> None:
    """Raise ValueError if value or gradients differ from the formula in float64 by more than rounding."""
    if way.name not in FORMULAS:
        return
    x, grad = x[:2].detach().requires_grad_(), grad[:2]
    wide = x.detach().double().requires_grad_()
    exact = way._replace(function=FORMULAS[way.name][0], parameters=tuple(
        p.detach().double().requires_grad_() for p in way.parameters))
    # sums over all elements are as uncertain as the sum of their absolute values
    terms = float((grad.double().abs() * (1 + wide.detach().square())).sum())
    for which in ('forward', 'forward + all gradients'):
        for got, expected in zip(way.run(which, x, grad), exact.run(which, wide, grad.double()), strict=True):
            size = max(1., float(expected.abs().max())) if got.shape == x.shape else terms / 16
            worst = float((got.double() - expected).abs().max())
            if not worst <= 64 * torch.finfo(x.dtype).eps * size:
                raise ValueError(f'{way}: differs by {worst:.3g} from float64; nothing was timed.')


def measure(args: argparse.Namespace) -> Iterator[Table]:
    if min(args.shape) < 1 or (args.channels_last and len(args.shape) != 4):
        raise ValueError(f'--shape {args.shape}: expected positive numbers, four of them with --channels-last.')
    ways = all_ways(args.activations, args.ways, args.device)
    if 'host' in args.measures:
        yield host_table(args)
    if 'time' not in args.measures and 'memory' not in args.measures:
        return
    device, dtype, size = torch.device(args.device), getattr(torch, args.dtype), math.prod(args.shape)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(0)
    count = max(2, min(32, CACHES[device.type] // (size * dtype.itemsize) + 1))
    pairs = [[(scale * torch.randn(args.shape, generator=generator, device=device)).to(dtype, memory_format=layout)
              .requires_grad_(scale == 2) for scale in (2, 1)] for _ in range(count)]
    for way in ways:
        check(way, *pairs[0])
    if 'time' in args.measures:
        yield time_table(args, ways, pairs)
    if 'memory' in args.measures:
        yield memory_table(ways, *pairs[0])


def time_table(args: argparse.Namespace, ways: Sequence[Way], pairs: Sequence[Sequence[Tensor]]) -> Table:
    """Times of every way and pass."""
    x, grad = pairs[0]
    # short calls are timed several at once, on a GPU enough of them that it does not wait for Python
    repeat = max(60 if x.is_cuda else 1, min(200, round(2**20 / x.numel())))
    target = torch.empty_like(grad)

    def repeated(action: Callable[[Tensor, Tensor], object], number: int) -> None:
        for i in range(number, number + repeat):
            action(*pairs[i % len(pairs)])

    def alone(way: Way) -> Callable[[int], object]:
        """The gradient of x by the graphs of forward passes that were run before."""
        with way.kernels():
            values = [way.function(x, *way.parameters) for x, _ in pairs]

        def run(number: int) -> None:
            for i in range(number, number + repeat):
                y, (x, grad) = values[i % len(pairs)], pairs[i % len(pairs)]
                with way.kernels():
                    torch.autograd.grad(y, x, grad.to(y.dtype), retain_graph=True)
        return run

    contestants: dict[tuple[str, str], Callable[[int], object]] = {
        ('copy', ''): functools.partial(repeated, lambda x, grad: target.copy_(grad))}
    for way, which in itertools.product(ways, PASSES):
        contestants[str(way), which] = alone(way) if which == 'gradient of x alone' else functools.partial(
            repeated, functools.partial(way.run, which))
    times = take_turns(contestants, args.rounds, until=args.until)
    copies = times['copy', '']
    layout = ', channels_last' if args.channels_last else ''
    table = Table(f'{"x".join(map(str, args.shape))}, {args.dtype}{layout}, {len(copies)} rounds:')
    table.add('copy', 'speed', [2 * x.nbytes * repeat / t / 1e9 for t in copies], 'GB/s')
    for way, (which, moved) in itertools.product(ways, PASSES.items()):
        row, taken, silu = f'{way}: {which}', times[str(way), which], times['silu, torch', which]
        table.add(row, 'time', [1e3 * t / repeat for t in taken], 'ms')
        table.add(row, '÷ SiLU', ratios(taken, silu))
        table.add(row, '÷ SiLU, fastest rounds', [min(taken) / min(silu)])
        table.add(row, '÷ copy', ratios(taken, [moved / 2 * t for t in copies]))
    return table


def memory_table(ways: Sequence[Way], x: Tensor, grad: Tensor) -> Table:
    """Memory of every way, in tensors of the size of x."""
    table = Table('Memory, in tensors of the size of x:')
    for way in ways:
        with way.kernels():
            kept = kept_bytes(functools.partial(way.function, x, *way.parameters), [x, *way.parameters])
        peak = peak_bytes(functools.partial(way.run, 'forward + all gradients', x, grad), x.device)
        table.add(str(way), 'kept', [kept / x.nbytes])
        table.add(str(way), 'most allocated', [peak / x.nbytes])
    return table


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Context in which tensors on the CPU are computed as on a GPU, by kernels whose launches do nothing."""
    from triton import JITFunction

    from timm_paf.kernels import choice, gpu
    launches = {name: Nothing() for name, value in vars(gpu).items() if isinstance(value, JITFunction)}
    with (
            mock.patch.dict(vars(gpu), launches), mock.patch.dict(gpu._compiled, clear=True),
            mock.patch.object(choice.cpu, 'available', lambda name, dtype: None),
            mock.patch.object(choice, '_implementation', lambda device: (gpu, None))):
        yield


class Nothing:
    """Kernel of Triton, also in its compiled form, that is launched without doing anything."""

    def __getitem__(self, grid: Any) -> Callable[..., 'Nothing']:
        return lambda *args, **options: self


def host_table(args: argparse.Namespace, calls: int = 200) -> Table:
    """Host time of calls of modules whose parameters are frozen, as in an attack."""
    device = torch.device(args.device)
    x = torch.randn(1, 64, 1, 1, device=device)
    x_grad, slope = x.clone().requires_grad_(), torch.ones_like(x)
    modules: dict[str, nn.Module] = {'silu': nn.SiLU()}
    modules |= {name: shared(name)().to(device).requires_grad_(False) for name in args.activations}
    contestants: dict[tuple[str, str], Callable[[int], object]] = {}

    def with_gradient(module: nn.Module, number: int) -> None:
        torch.autograd.grad(module(x_grad), x_grad, slope)

    for name, module in modules.items():
        contestants[name, 'call'] = functools.partial(lambda module, number: module(x), module)
        contestants[name, 'call with gradient of x'] = functools.partial(with_gradient, module)

    def clock(action: Callable[[int], object], number: int) -> float:
        for _ in range(calls // 10):
            action(number)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            action(number)
        return (time.perf_counter() - started) / calls

    with as_on_a_gpu() if device.type == 'cpu' else contextlib.nullcontext():
        times = take_turns(contestants, args.rounds, until=args.until, clock=clock)
    table = Table('Time of the host, without waiting for the device:')
    for (name, which), taken in times.items():
        table.add(f'{name}: {which}', 'time', [1e6 * t for t in taken], 'µs')
        table.add(f'{name}: {which}', '÷ SiLU', ratios(taken, times['silu', which]))
        table.add(f'{name}: {which}', '÷ SiLU, fastest rounds', [min(taken) / min(times['silu', which])])
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=15)
    parser.add_argument('--activations', nargs='+', default=list(ACTIVATIONS), choices=list(ACTIVATIONS))
    parser.add_argument('--ways', nargs='+', default=list(WAYS[:3]), choices=WAYS, help='ways to compute them')
    parser.add_argument('--measures', nargs='+', default=list(MEASURES[:2]), choices=MEASURES, help='what to measure')
    parser.add_argument('--shape', nargs='+', type=int, default=[64, 64, 32, 32], help='shape of x')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16', 'float64'))
    parser.add_argument('--channels-last', action='store_true', help='memory format of x')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
