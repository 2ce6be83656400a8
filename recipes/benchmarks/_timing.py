"""Command line, clock, memory and result table that all benchmarks share.

All implementations take turns within a round. A ratio is of two times of the same round. A figure is the median over
the rounds, with the smallest and largest value.
"""
import argparse
import dataclasses
import datetime
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from timm_paf.evaluation import library_versions

Name = TypeVar('Name')


def seconds(action: Callable[..., object], *args: object) -> float:
    """Time that an action takes, in seconds, including all work that it starts on a GPU."""
    started = timer()  # waits for the GPU, if there is one
    action(*args)
    return timer() - started


def take_turns(
        contestants: Mapping[Name, Callable[[int], object]], rounds: int, *, until: float = math.inf,
        clock: Callable[[Callable[[int], object], int], float] = seconds,
) -> dict[Name, list[float]]:
    """Seconds of every contestant in each round, in an order that shifts by one place from round to round.

    Each contestant gets the number of the round. One more round comes first as a warm-up and is not counted. No round
    but the first starts later than `until` (of `time.monotonic`).
    """
    names, times = list(contestants), {name: list[float]() for name in contestants}
    for number in (-1, *range(rounds)):
        if number > 0 and time.monotonic() > until:
            break
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            taken = clock(contestants[name], max(number, 0))
            if number >= 0:
                times[name].append(taken)
    return times


def process_age() -> float:
    """Seconds since this process started."""
    ticks = int(Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')


def peak_flops(device: torch.device) -> float:
    """Operations per second of large matrix products in bfloat16, which is what the device can do at most."""
    size, products = (8192, 10) if device.type == 'cuda' else (512, 1)
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return products * 2 * size**3 / min(seconds(lambda: [a @ b for _ in range(products)]) for _ in range(6))


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratio per round."""
    return [a / b for a, b in zip(values, others, strict=True)]


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that an action allocates at one time, on top of what is allocated before it."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        seconds(action)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    now = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        now += event.nbytes() if event.name() == '[memory]' else 0
        most = max(most, now)
    return most


def kept_bytes(forward: Callable[[], Tensor], own: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, without the tensors `own`; each piece of memory counts once."""
    kept: list[Tensor] = []  # tensors stay alive, so that no address is used again
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: torch.empty(0)):
        forward()
    known = {tensor.untyped_storage()._cdata for tensor in own}
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for number, size in sizes.items() if number not in known)


def number(value: float) -> str:
    """A figure as the tables show it: three digits, or all those before the point."""
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


@dataclasses.dataclass
class Table:
    """Figures in rows and columns, under a title that says what is measured and how."""
    title: str
    figures: list[tuple[str, str, str, list[float]]] = dataclasses.field(default_factory=list)  # row, column, unit, …

    def add(self, row: str, column: str, values: Sequence[float], unit: str = '') -> None:
        """Fill a cell with the values of all rounds, in place of what it held."""
        self.figures = [figure for figure in self.figures if figure[:2] != (row, column)]
        self.figures.append((row, column, unit, list(values)))

    def markdown(self) -> str:
        """Title and table, with medians and ranges; empty cells where nothing is measured."""
        columns = {column: f'{column}, {unit}' if unit else column for _, column, unit, _ in self.figures}
        rows = {row: dict.fromkeys(columns, '') for row, *_ in self.figures}
        for row, column, _, values in self.figures:
            median, low, high = (number(f(values)) for f in (statistics.median, min, max))
            rows[row][column] = median if len(values) == 1 else f'{median} ({low} … {high})'
        lines = [f'| | {" | ".join(columns.values())} |', f'| --- |{" ---: |" * len(columns)}',
                 *(f'| {row} | {" | ".join(cells.values())} |' for row, cells in rows.items())]
        return '\n'.join([self.title, '', *lines, ''])


def new_parser(script: str, description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Parser of a script and the first line of its docstring, with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        prog=Path(script).name, description=(description or '').splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch on the CPU')
    parser.add_argument('--rounds', type=int, default=rounds, help='rounds of timing')
    parser.add_argument('--tf32', action='store_true', help='let the GPU compute float32 products in TF32')
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the tables to this file as well')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='add the figures to those in this file')
    parser.add_argument(
        '--limit', type=float, default=math.inf, metavar='SECONDS', help='time from the start of the program; no other '
        'round or update starts later')
    return parser


def add_run(path: Path, record: dict[str, Any], tables: Sequence[Table]) -> None:
    """Write a run with its figures so far to a file, after the earlier runs in it."""
    figures = [
        {'row': row, 'column': column, 'unit': unit, 'median': statistics.median(values), 'low': min(values),
         'high': max(values), 'rounds': len(values)}
        for table in tables for row, column, unit, values in table.figures]
    runs = json.loads(path.read_text())['runs'] if path.exists() else []
    runs = [run for run in runs if (run['command'], run['started']) != (record['command'], record['started'])]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    part.write_text(json.dumps({'runs': [*runs, {**record, 'figures': figures}]}, indent=2) + '\n', encoding='utf-8')
    part.replace(path)


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Iterable[Table]],
        argv: Sequence[str] | None) -> int:
    """Parse the command line, measure, print and write the tables; the exit status is 2 after an error in one line.

    The figures are written as soon as `measure` yields them; it may yield a table again that has got more of them.
    """
    args = parser.parse_args(argv)
    args.until = math.inf if args.limit == math.inf else time.monotonic() - process_age() + args.limit
    tables: list[Table] = []
    try:
        if args.rounds < 1:
            raise ValueError(f'--rounds {args.rounds}: expected 1 or more.')
        torch.set_num_threads(args.threads)
        if args.device != 'cpu':
            if not torch.cuda.is_available():
                raise ValueError(f'--device {args.device}: torch finds no GPU; use cpu.')
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
        record: dict[str, Any] = {
            'command': shlex.join([
                'python', f'recipes/benchmarks/{parser.prog}', *(sys.argv[1:] if argv is None else argv)]),
            'started': datetime.datetime.now().isoformat(timespec='seconds'), 'versions': library_versions(),
            'device': f'CPU ({torch.get_num_threads()} of {os.cpu_count()} cores)' if args.device == 'cpu' else (
                torch.cuda.get_device_name(args.device))}
        for table in measure(args):
            if not any(table is known for known in tables):
                tables.append(table)
            if args.json is not None:
                add_run(args.json, record, tables)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    listed = ', '.join(f'{name} {version}' for name, version in library_versions().items())
    text = '\n'.join([*(table.markdown() for table in tables),
                      f'`{record["command"]}`, {record["started"][:10]}, {listed}, {record["device"]}.'])
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + '\n', encoding='utf-8')
    return 0
