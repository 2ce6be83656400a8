"""Command line, clock, memory and result table that all benchmarks share.

Every benchmark compares results before it times anything. All contestants take turns within a round, a ratio is that of
two times of the same round, and a figure is the median over the rounds with its smallest and largest value.
"""
import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from timm_paf.evaluation import library_versions

__all__ = ['Table', 'kept_bytes', 'new_parser', 'peak_bytes', 'ratios', 'run', 'seconds', 'take_turns']

Name = TypeVar('Name', bound=Hashable)


def seconds(action: Callable[[], object]) -> float:
    """Time that an action takes, in seconds, including all work that it starts on a GPU."""
    started = timer()  # waits for the GPU, if there is one
    action()
    return timer() - started


def take_turns(contestants: Mapping[Name, Callable[[int], object]], rounds: int) -> dict[Name, list[float]]:
    """Time every contestant once per round, in an order that shifts by one place from round to round.

    One more round comes first as a warm-up and is not counted.

    Args:
        contestants: Functions by name. Each gets the number of the round, and can choose its inputs by it.
        rounds: Number of rounds that count.

    Returns:
        Seconds per round, by name.
    """
    names = list(contestants)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(functools.partial(contestants[name], max(number, 0))))
    return {name: values[1:] for name, values in times.items()}


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratio per round."""
    return [a / b for a, b in zip(values, others, strict=True)]


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that an action allocates at one time, on top of what is allocated before it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
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
    known = {tensor.untyped_storage()._cdata for tensor in own}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that none is freed and its number used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


class Figure(NamedTuple):
    """Values of all rounds for one cell of the table."""
    row: str
    column: str
    unit: str
    values: list[float]

    def __str__(self) -> str:
        median, low, high = (_number(f(self.values)) for f in (statistics.median, min, max))
        return median if len(self.values) == 1 else f'{median} ({low} … {high})'


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


class Table:
    """Figures in rows and columns, printed as Markdown and written as JSON.

    Args:
        title: What is measured and how: printed above the table.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.figures: list[Figure] = []

    def add(self, row: str, column: str, values: Sequence[float], unit: str = '') -> None:
        """Fill a cell with the values of all rounds."""
        self.figures.append(Figure(row, column, unit, list(values)))

    def markdown(self) -> str:
        """Title and table; empty cells where nothing is measured."""
        cells = {(figure.row, figure.column): str(figure) for figure in self.figures}
        columns = {figure.column: figure.unit for figure in self.figures}
        lines = [f'| | {" | ".join(f"{name}, {unit}" if unit else name for name, unit in columns.items())} |',
                 f'| --- |{" ---: |" * len(columns)}']
        for row in dict.fromkeys(figure.row for figure in self.figures):
            lines.append(f'| {row} | {" | ".join(cells.get((row, column), "") for column in columns)} |')
        return '\n'.join([f'{self.title}:', '', *lines, ''])


def new_parser(script: str, description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Parser with the options that all benchmarks have.

    Args:
        script: File of the script.
        description: Its docstring, of which the first line is shown.
        rounds: Default of `--rounds`.
    """
    parser = argparse.ArgumentParser(
        prog=Path(script).name, description=(description or '').splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch on the CPU')
    parser.add_argument('--rounds', type=int, default=rounds, help='rounds of timing')
    parser.add_argument('--tf32', action='store_true', help='let the GPU compute float32 products in TF32')
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the tables to this file as well')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='write the figures to this file as well')
    return parser


def run(
        parser: argparse.ArgumentParser,
        measure: Callable[[argparse.Namespace], list[Table]],
        argv: Sequence[str] | None,
) -> int:
    """Parse the command line, measure, print and write the tables.

    Returns:
        Exit status: 0, or 2 after one line about the error.
    """
    args = parser.parse_args(argv)
    try:
        _use(args)
        tables = measure(args)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    words = ['python', f'recipes/benchmarks/{parser.prog}', *(sys.argv[1:] if argv is None else argv)]
    versions = {name: version for name, version in library_versions().items() if version != 'unknown'}
    facts = {'command': shlex.join(words), 'date': str(datetime.date.today()), 'device': _device_name(args.device)}
    listed = ', '.join(f'{name} {version.split("+")[0]}' for name, version in versions.items())
    text = '\n'.join([*(table.markdown() for table in tables),
                      f'`{facts["command"]}`, {facts["date"]}, {listed}, {facts["device"]}.'])
    print(text)
    figures = [
        {'row': f.row, 'column': f.column, 'unit': f.unit, 'median': statistics.median(f.values),
         'low': min(f.values), 'high': max(f.values), 'rounds': len(f.values)}
        for table in tables for f in table.figures]
    written = json.dumps({**facts, 'versions': versions, 'figures': figures}, indent=2)
    for path, content in ((args.output, text), (args.json, written)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + '\n', encoding='utf-8')
    return 0


def _use(args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise ValueError(f'--rounds {args.rounds}: expected 1 or more.')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without this device
        raise ValueError(f'--device {args.device}: {str(error).splitlines()[0]}') from None
    torch.set_num_threads(args.threads)
    if args.device != 'cpu':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32


def _device_name(device: str) -> str:
    if device != 'cpu':
        return torch.cuda.get_device_name(device)
    return f'CPU ({platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores)'
