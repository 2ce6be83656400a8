"""Time and memory of the activations, compared with SiLU and with a copy of the same size.

    python recipes/benchmarks/activations.py --output output/activations.md

Three passes of each activation are timed: forward without gradients; forward and backward with the gradients of x,
alpha and beta; and with the gradient of x alone, as in an attack. The ways to compute an activation are

- fused: the default of this package;
- reference: `timm_paf.kernels.use('reference')`, accurate formulas in torch's operations;
- formula: the formula as it is written in papers and in published modules (for PSSiLU, RobustBench's
  `Dai2021Parameterizing`), without care for rounding or overflow;
- compiled: the formula under torch.compile.

Values and gradients are compared with float64 before anything is timed. Inputs rotate, and together are larger than
the caches. `÷ copy` is the time over that of copying as much memory as the pass has to read and write: 2 tensors of
the size of x forward, 5 forward and backward. Memory is in tensors of that size: what autograd keeps next to x, and
the most that forward and backward pass allocate. On a GPU use large tensors: `--shape 256 160 32 32` is the first
stage of `wrn28_10`.
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

DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'float16', 'float64')}
WAYS = ('fused', 'reference', 'formula', 'compiled')
PASSES = {'forward': 2, 'forward + backward': 5, 'gradient of x': 5}  # tensors that have to move
CACHES = {'cpu': 64 * 2**20, 'cuda': 256 * 2**20}  # bytes


class Way(NamedTuple):
    """A way to compute an activation: `function(x, *parameters)` with a choice of kernels."""
    name: str
    way: str
    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()
    mode: str = 'auto'

    def __str__(self) -> str:
        return f'{self.name}, {self.way}'


def all_ways(names: Sequence[str], wanted: Sequence[str], device: str) -> list[Way]:
    """SiLU, ReLU, and every activation in every way that is wanted."""
    found = [Way('silu', 'torch', F.silu), Way('relu', 'torch', F.relu)]
    for name in names:
        formula, values = FORMULAS[name]
        fused = getattr(functional, name)
        parameters = tuple(torch.tensor([v], device=device, requires_grad=True) for v in values)
        functions = {'fused': fused, 'reference': fused, 'formula': formula,
                     'compiled': torch.compile(formula, dynamic=False)}
        found += [Way(name, way, functions[way], parameters, 'reference' if way == 'reference' else 'auto')
                  for way in wanted]
    return found


def run_pass(way: Way, which: str, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Compute one pass: the value, or gradients."""
    with kernels.use(way.mode):
        if which == 'forward':
            with torch.no_grad():
                return (way.function(x, *way.parameters),)
        inputs = [x, *way.parameters] if which == 'forward + backward' else [x]
        y = way.function(x, *way.parameters)
        return torch.autograd.grad(y, inputs, grad.to(y.dtype))


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
        right = run_pass(exact, which, wide, grad.double())
        for got, expected in zip(run_pass(way, which, x, grad), right, strict=True):
            size = max(1., float(expected.abs().max())) if got.shape == x.shape else terms / 16
            worst = float((got.double() - expected).abs().max())
            if not worst <= 64 * torch.finfo(x.dtype).eps * size:
                raise ValueError(f'{way}: differs by {worst:.3g} from float64; nothing was timed.')


def inputs(args: argparse.Namespace, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Values of x and gradients of y, together larger than the caches."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    count = math.ceil(CACHES[torch.device(args.device).type] / (math.prod(args.shape) * dtype.itemsize))
    xs, grads = (
        [(scale * torch.randn(args.shape, generator=generator)).to(args.device, dtype, memory_format=layout)
         for _ in range(max(2, min(32, count)))] for scale in (2, 1))
    return [x.requires_grad_() for x in xs], grads


def measure(args: argparse.Namespace) -> list[Table]:
    if min(args.shape) < 1 or (args.channels_last and len(args.shape) != 4):
        raise ValueError(f'--shape {args.shape}: expected positive numbers, four of them with --channels-last.')
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    xs, grads = inputs(args, dtype)
    ways = all_ways(args.activations, args.ways, args.device)
    for way in ways:
        check(way, xs[0], grads[0])
    # short calls are timed several at once, on a GPU enough of them that it does not wait for Python
    repeat = max(10 if device.type == 'cuda' else 1, min(200, round(2**20 / xs[0].numel())))
    target = torch.empty_like(xs[0])

    def repeated(action: Callable[[Tensor, Tensor], object]) -> Callable[[int], None]:
        def call(number: int) -> None:
            for i in range(number, number + repeat):
                action(xs[i % len(xs)], grads[i % len(xs)])
        return call

    contestants = {('copy', ''): repeated(lambda x, grad: target.copy_(grad))}
    for way, which in itertools.product(ways, PASSES):
        contestants[str(way), which] = repeated(functools.partial(run_pass, way, which))
    times = take_turns(contestants, args.rounds)
    copies = times['copy', '']
    table = Table(f'{"x".join(map(str, args.shape))}, {args.dtype}{", channels_last" if args.channels_last else ""}')
    table.add('copy', 'speed', [2 * xs[0].nbytes * repeat / t / 1e9 for t in copies], 'GB/s')
    for way, (which, moved) in itertools.product(ways, PASSES.items()):
        row, taken, silu = f'{way}: {which}', times[str(way), which], times['silu, torch', which]
        table.add(row, 'time', [1e3 * t / repeat for t in taken], 'ms')
        table.add(row, '÷ SiLU', ratios(taken, silu))
        table.add(row, '÷ SiLU, fastest rounds', [min(taken) / min(silu)])
        table.add(row, '÷ copy', ratios(taken, [moved / 2 * t for t in copies]))
        if which == 'forward + backward':
            with kernels.use(way.mode):
                kept = kept_bytes(functools.partial(way.function, xs[0], *way.parameters), [xs[0], *way.parameters])
            peak = peak_bytes(functools.partial(run_pass, way, which, xs[0], grads[0]), device)
            table.add(row, 'kept', [kept / xs[0].nbytes], 'tensors')
            table.add(row, 'most allocated', [peak / xs[0].nbytes], 'tensors')
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=15)
    parser.add_argument('--activations', nargs='+', default=list(ACTIVATIONS), choices=list(ACTIVATIONS))
    parser.add_argument('--ways', nargs='+', default=list(WAYS[:3]), choices=WAYS, help='ways to compute them')
    parser.add_argument('--shape', nargs='+', type=int, default=[64, 64, 32, 32], help='shape of x')
    parser.add_argument('--dtype', default='float32', choices=list(DTYPES), help='dtype of x')
    parser.add_argument('--channels-last', action='store_true', help='memory format of x')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
