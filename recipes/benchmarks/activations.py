"""What the activations cost: time, memory, and how near both are to what the machine can do.

    python recipes/benchmarks/activations.py --output docs/tables/activation_speed.md

Three times for each activation and each way to compute it: the forward pass without gradients, forward and backward
pass with the gradients of x, alpha and beta, and with that of x alone, as an attack needs it. The ways are

- fused: as this package computes it by default;
- reference: `timm_paf.kernels.use('reference')`, torch's operations with every digit kept;
- formula: the formula as one writes it down and as published modules have it (for PSSiLU that of RobustBench's
  `Dai2021Parameterizing`), without care for digits or overflow;
- compiled: the formula under torch.compile (if --ways names it).

Results are compared with float64 before anything is timed. Inputs rotate, and in every round each way is measured once,
so that a busy moment of the machine hits all alike; figures are medians over rounds with half the distance of the
quartiles, and ratios to nn.SiLU are medians of the ratios in one round, in brackets that of the fastest rounds, which
says more on a busy machine. The floor is what has to move (x in and y out; then x and the gradient in, a gradient out)
at the bandwidth of a copy, measured in the same rounds, as a share of the time. Kept is what autograd keeps beside x,
peak the most that forward and backward pass allocate, both in tensors of x's size.

On a GPU time is that between two events on its stream around ten calls or more, so that it does not wait for Python as
long as tensors are large: `--shape 256 160 32 32` is the first stage of `wrn28_10`.
"""
import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import (
    Figure,
    chosen_device,
    device_name,
    peak_bytes,
    ratio,
    ratios,
    seconds,
    spread,
    summary_line,
    write_figures,
)
from _plain_loop import FORMULAS

from timm_paf import kernels
from timm_paf.activations import ACTIVATIONS, functional

DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'float16', 'float64')}
WAYS = ('fused', 'reference', 'formula', 'compiled')
PASSES = ('forward', 'x, α, β', 'x')
TITLES = ('forward', 'forward + backward', 'gradient of x alone')
MOVED = (2, 5, 5)  # tensors of x's size in the three passes
CACHES = (64 * 2**20, 256 * 2**20)  # bytes of CPU and GPU that rotating inputs have to exceed


class Way(NamedTuple):
    """One way to compute one activation: `function(x, *parameters)` under a choice of kernels."""
    name: str
    way: str
    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()
    mode: str = 'auto'


class Result(NamedTuple):
    """Milliseconds of every round for each pass, and memory in tensors of x's size."""
    times: tuple[list[float], ...]
    kept: float
    peak: float


def ways(names: list[str], device: torch.device, wanted: Sequence[str] = WAYS[:3]) -> list[Way]:
    """Everything that is measured, beside ReLU and SiLU those of `WAYS` that are wanted."""
    found = [Way('relu', 'torch', F.relu), Way('silu', 'torch', F.silu)]
    for name in names:
        formula, values = FORMULAS[name]
        parameters = tuple(torch.tensor([v], device=device, requires_grad=True) for v in values)
        function = getattr(functional, name)
        each = [
            Way(name, 'fused', function, parameters), Way(name, 'reference', function, parameters, 'reference'),
            Way(name, 'formula', formula, parameters)]
        if 'compiled' in wanted:
            each.append(Way(name, 'compiled', torch.compile(formula, dynamic=False), parameters))
        found += [way for way in each if way.way in wanted]
    return found


def run(way: Way, which: int, x: Tensor, grad: Tensor) -> Any:
    """One pass."""
    with kernels.use(way.mode):
        if which == 0:
            with torch.no_grad():
                return way.function(x, *way.parameters)
        y = way.function(x, *way.parameters)
        return torch.autograd.grad(y, [x, *way.parameters] if which == 1 else [x], grad.to(y.dtype))


def check(way: Way, x: Tensor, grad: Tensor) -> None:
    """Raise ValueError if value or gradients are not those of the formula in float64, as far as its digits go."""
    if way.name not in FORMULAS:
        return
    x, grad = x[:2], grad[:2]
    formula, values = FORMULAS[way.name]
    exact = Way(way.name, 'exact', formula, tuple(
        torch.tensor([v], dtype=torch.float64, device=x.device, requires_grad=True) for v in values))
    wide = x.detach().double().requires_grad_()
    expected = [run(exact, 0, wide, grad.double()), *run(exact, 1, wide, grad.double())]
    x = x.detach().requires_grad_()
    eps = torch.finfo(x.dtype).eps
    terms = float((grad.double().abs() * (1 + wide.detach().square())).sum())
    for got, right in zip([run(way, 0, x, grad), *run(way, 1, x, grad)], expected, strict=True):
        tolerance = 64 * eps * (1 if got.shape == x.shape else terms / 16)
        worst = float((got.double() - right).abs().max())
        if not worst <= tolerance * max(1., float(right.abs().max()) if got.shape == x.shape else 1.):
            raise ValueError(f'{way.name}, {way.way}: differs by {worst:.3g} from float64; nothing was timed.')


def memory(way: Way, x: Tensor, grad: Tensor) -> tuple[float, float]:
    """Bytes that autograd keeps beside x and the parameters, and the most that a pass allocates, in tensors like x."""
    own = {t.untyped_storage()._cdata for t in (x, *way.parameters)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage.data_ptr() not in {p.data_ptr() for p in way.parameters}:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), kernels.use(way.mode):
        y = way.function(x, *way.parameters)
    saved = sum(storage.nbytes() for storage in kept.values())
    del y
    kept.clear()
    unit = x.numel() * x.element_size()
    peak = peak_bytes(lambda: run(way, 1, x, grad), x.device)
    if peak is not None:
        return saved / unit, peak / unit
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run(way, 1, x, grad)
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == '[memory]']
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return saved / unit, most / unit


def measure(
        found: list[Way], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int,
        channels_last: bool,
) -> tuple[dict[tuple[str, str], Result], list[float]]:
    """Results of every way, and the milliseconds of a copy of x in every round."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def random() -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype, memory_format=layout)

    # together more than any cache holds, as far as there are not too many of them
    count = max(2, math.ceil(CACHES[device.type == 'cuda'] / (math.prod(shape) * dtype.itemsize)))
    xs = [(2 * random()).requires_grad_() for _ in range(min(count, 32))]
    grads = [random() for _ in xs]
    for way in found:
        check(way, xs[0], grads[0])
    used = {(way.name, way.way): memory(way, xs[0], grads[0]) for way in found}
    times: dict[tuple[str, str], list[list[float]]] = {(way.name, way.way): [[] for _ in PASSES] for way in found}
    copies, target = [], torch.empty_like(xs[0])
    # short calls are measured several together, on a GPU enough of them that it never waits for the next one
    repeat = max(10 if device.type == 'cuda' else 1, min(200, round(2**20 / math.prod(shape))))
    for number in range(-1, rounds):  # one round to warm up
        copy = 1e3 * seconds(lambda: [target.detach().copy_(xs[i % len(xs)].detach()) for i in range(repeat)], device)
        copies.append(copy / repeat)
        for way in found:
            for which in range(len(PASSES)):
                def calls(way=way, which=which, number=number):
                    for i in range(repeat):
                        at = (number + i) % len(xs)
                        run(way, which, xs[at], grads[at])
                times[way.name, way.way][which].append(1e3 * seconds(calls, device) / repeat)
    return {
        key: Result(tuple(series[1:] for series in times[key]), *used[key]) for key in times}, copies[1:]


def rows(results: dict[tuple[str, str], Result], copies: list[float]) -> list[list[str]]:
    """Cells of the table."""
    lines = []
    silu = results['silu', 'torch']
    for (name, way), result in results.items():
        cells = [name, way]
        for which, moved in enumerate(MOVED):
            floor = [moved / 2 * copy for copy in copies]
            cells.append(spread(result.times[which]))
            fastest = min(result.times[which]) / min(silu.times[which])
            cells.append(f'{ratio(result.times[which], silu.times[which]):.2f} ({fastest:.2f})')
            cells.append(f'{100 * ratio(floor, result.times[which]):.0f} %')
        lines.append([*cells, f'{result.kept:.1f}', f'{result.peak:.1f}'])
    return lines


def figures(results: dict[tuple[str, str], Result], copies: list[float], moved: float) -> list[Figure]:
    """Everything that is measured, by name; `moved` are the bytes of a copy."""
    found = [Figure('copy', [moved / 1e6 / copy for copy in copies], 'GB/s')]
    silu = results['silu', 'torch']
    for (name, way), result in results.items():
        for title, tensors, times, silus in zip(TITLES, MOVED, result.times, silu.times, strict=True):
            label, floor = f'{name}, {way}: {title}', [tensors / 2 * copy for copy in copies]
            found += [
                Figure(label, times, 'ms'), Figure(f'{label} over SiLU', ratios(times, silus), 'times'),
                Figure(f'{label} over the floor', ratios(times, floor), 'times')]
        found += [Figure(f'{name}, {way}: kept', [result.kept], 'tensors'),
                  Figure(f'{name}, {way}: most allocated', [result.peak], 'tensors')]
    return found


HEADER = [
    'activation', 'way',
    *(cell for name in TITLES for cell in (f'{name}, ms', '÷ SiLU', 'floor')),
    'kept', 'peak']


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--activations', nargs='+', default=list(ACTIVATIONS), choices=list(ACTIVATIONS))
    parser.add_argument('--shape', nargs='+', type=int, default=[64, 64, 32, 32])
    parser.add_argument('--dtype', default='float32', choices=list(DTYPES))
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, help='of the CPU; as torch chooses if not given')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--ways', nargs='+', default=list(WAYS[:3]), choices=WAYS)
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the table as Markdown as well')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there as well')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        if args.rounds < 2 or min(args.shape) < 1:
            raise ValueError('expected --rounds of 2 or more, and a shape of positive numbers.')
        if args.channels_last and len(args.shape) != 4:
            raise ValueError('--channels-last is for shapes of four numbers.')
        device = chosen_device(args.device)
        results, copies = measure(
            ways(args.activations, device, args.ways), tuple(args.shape), DTYPES[args.dtype], device, args.rounds,
            args.channels_last)
    except (ValueError, RuntimeError, AssertionError) as error:
        print(f'error: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    moved = 2 * math.prod(args.shape) * DTYPES[args.dtype].itemsize
    head = (
        f'{"x".join(map(str, args.shape))}, {args.dtype}{", channels_last" if args.channels_last else ""}, '
        f'{device_name(device)}; {args.rounds} rounds; a copy moves {moved / 1e6 / statistics.median(copies):.1f} GB/s')
    command = None if argv is None else [__file__, *argv]
    table = Table(*HEADER, title=head)
    lines = rows(results, copies)
    for line in lines:
        table.add_row(*line)
    Console(width=180).print(table)
    if args.json:
        write_figures(args.json, figures(results, copies, moved), device, command)
    if args.output:
        text = [
            f'{head}.', '', '| ' + ' | '.join(HEADER) + ' |', '| --- | --- |' + ' ---: |' * (len(HEADER) - 2),
            *('| ' + ' | '.join(line) + ' |' for line in lines), '', f'{summary_line(device, command)}.', '']
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text('\n'.join(text), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
