"""Time and memory of the activations, compared with SiLU and with a copy of the same size.

    python recipes/benchmarks/activations.py --output output/activations.md

An activation is computed in these ways: fused, the default; reference, `timm_paf.kernels.use('reference')`; formula, as
in papers and published modules, with no protection against rounding errors or overflow; compiled, the formula under
torch.compile.

Values and gradients are compared with float64 before anything is timed. Several inputs take turns; together they are
larger than the caches. `÷ copy` is the time divided by that of copying as much memory as the pass has to read and
write. Memory is in tensors of the size of x: what autograd keeps in addition to x, and the most that forward and
backward pass allocate.

On a GPU use large tensors: `--shape 256 160 32 32` is the first stage of `wrn28_10`.
"""
import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from _plain_loop import FORMULAS
from _timing import Table, kept_bytes, new_parser, peak_bytes, ratios, run, take_turns
from torch import Tensor
from torch.nn import functional as F

from timm_paf import kernels
from timm_paf.activations import ACTIVATIONS, functional

WAYS = ('fused', 'reference', 'formula', 'compiled')
CACHES = {'cpu': 64 * 2**20, 'cuda': 256 * 2**20}  # bytes; all inputs together are larger
PASSES = {'forward': 2, 'forward + backward': 5, 'gradient of x': 5}  # tensors that have to move


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
            inputs = [x, *self.parameters] if which == 'forward + backward' else [x]
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
    for which in ('forward', 'forward + backward'):
        for got, expected in zip(way.run(which, x, grad), exact.run(which, wide, grad.double()), strict=True):
            size = max(1., float(expected.abs().max())) if got.shape == x.shape else terms / 16
            worst = float((got.double() - expected).abs().max())
            if not worst <= 64 * torch.finfo(x.dtype).eps * size:
                raise ValueError(f'{way}: differs by {worst:.3g} from float64; nothing was timed.')


def measure(args: argparse.Namespace) -> Table:
    if min(args.shape) < 1 or (args.channels_last and len(args.shape) != 4):
        raise ValueError(f'--shape {args.shape}: expected positive numbers, four of them with --channels-last.')
    device, dtype, size = torch.device(args.device), getattr(torch, args.dtype), math.prod(args.shape)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    count = max(2, min(32, CACHES[device.type] // (size * dtype.itemsize) + 1))
    pairs = [[(scale * torch.randn(args.shape, generator=generator)).to(device, dtype, memory_format=layout)
              .requires_grad_(scale == 2) for scale in (2, 1)] for _ in range(count)]
    x, grad = pairs[0]
    ways = all_ways(args.activations, args.ways, args.device)
    for way in ways:
        check(way, x, grad)
    # short calls are timed several at once, on a GPU enough of them that it does not wait for Python
    repeat = max(10 if device.type == 'cuda' else 1, min(200, round(2**20 / size)))
    target = torch.empty_like(grad)

    def repeated(action: Callable[[Tensor, Tensor], object], number: int) -> None:
        for i in range(number, number + repeat):
            action(*pairs[i % len(pairs)])

    contestants = {('copy', ''): functools.partial(repeated, lambda x, grad: target.copy_(grad))}
    for way, which in itertools.product(ways, PASSES):
        contestants[str(way), which] = functools.partial(repeated, functools.partial(way.run, which))
    times = take_turns(contestants, args.rounds)
    copies = times['copy', '']
    table = Table(f'{"x".join(map(str, args.shape))}, {args.dtype}{", channels_last" if args.channels_last else ""}:')
    table.add('copy', 'speed', [2 * x.nbytes * repeat / t / 1e9 for t in copies], 'GB/s')
    for way, (which, moved) in itertools.product(ways, PASSES.items()):
        row, taken, silu = f'{way}: {which}', times[str(way), which], times['silu, torch', which]
        table.add(row, 'time', [1e3 * t / repeat for t in taken], 'ms')
        table.add(row, '÷ SiLU', ratios(taken, silu))
        table.add(row, '÷ SiLU, fastest rounds', [min(taken) / min(silu)])
        table.add(row, '÷ copy', ratios(taken, [moved / 2 * t for t in copies]))
        if which == 'forward + backward':
            with way.kernels():
                kept = kept_bytes(functools.partial(way.function, x, *way.parameters), [x, *way.parameters])
            table.add(row, 'kept', [kept / x.nbytes], 'tensors')
            peak = peak_bytes(functools.partial(way.run, which, x, grad), device)
            table.add(row, 'most allocated', [peak / x.nbytes], 'tensors')
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=15)
    parser.add_argument('--activations', nargs='+', default=list(ACTIVATIONS), choices=list(ACTIVATIONS))
    parser.add_argument('--ways', nargs='+', default=list(WAYS[:3]), choices=WAYS, help='ways to compute them')
    parser.add_argument('--shape', nargs='+', type=int, default=[64, 64, 32, 32], help='shape of x')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16', 'float64'))
    parser.add_argument('--channels-last', action='store_true', help='memory format of x')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
