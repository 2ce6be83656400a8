"""Progress of a run on the terminal, and estimates of its time and memory."""
import resource
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import nn

from timm_paf.activations import paf_modules, paf_parameters
from timm_paf.engine.callbacks import Callback, Row

__all__ = ['AttackView', 'TrainingView', 'duration', 'memory', 'shape_values']


def duration(seconds: float) -> str:
    """Seconds in words: '40 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = seconds / 60
    return f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h'


class AttackView:
    """Progress of a measurement: a changing line on a terminal, else a line every `every` seconds. A context."""

    def __init__(self, console: Console, title: str, *, every: float = 60.) -> None:
        self.console, self.title, self.every = console, title, every
        self.status = console.status(f'measuring on {title}')
        self.written = time.monotonic()

    def __enter__(self) -> 'AttackView':
        self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.status.stop()

    def part(self, what: str, done: int, total: int) -> None:
        """Show the progress of another part of the measurement."""
        self._show(f'{what} {done}/{total}')

    def progress(self, part: str, done: int, total: int, robust: int, left: float) -> None:
        """Show the progress of an attack, as the `progress` argument of `evaluate_robustness`."""
        kind = 'correct' if part == 'clean' else 'robust'
        text = f'measuring on {self.title}: {part} {done}/{total} images, {robust} {kind} so far'
        if left > 0:  # neither 0 nor NaN, which means not known yet
            text += f', about {duration(left)} left'
        self._show(text)

    def _show(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(text)
        elif time.monotonic() - self.written >= self.every:
            self.written = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)


class TrainingView(Callback):
    """Progress of training with `steps` updates per epoch: a live bar on a terminal, one line per epoch elsewhere."""

    def __init__(self, console: Console, *, epochs: int, steps: int, device: torch.device) -> None:
        self.console, self.epochs, self.steps, self.device = console, epochs, steps, device
        self.first, self.started, self.validation = 0, time.monotonic(), ''
        self.live: Live | None = None
        if console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(), TextColumn('[bold]{task.description}'), BarColumn(), MofNCompleteColumn(),
                TextColumn('{task.fields[rate]}'), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn('left'),
                console=console)
            self.bar = self.progress.add_task(f'epoch 1/{epochs}', total=epochs * steps, rate='')
            self.numbers = Text()
            self.live = Live(Group(self.progress, self.numbers), console=console, transient=True)

    def on_start(self, rows: Sequence[Row]) -> None:
        self.first, self.started = len(rows), time.monotonic()
        if self.live is not None:
            self.live.start()

    def on_end(self, error: BaseException | None) -> None:
        if self.live is not None:
            self.live.stop()

    def on_message(self, text: str) -> None:
        # without a terminal there is no width to wrap lines to
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def on_update(self, epoch: int, step: int, metrics: Mapping[str, float], shape: Mapping[str, float]) -> None:
        if self.live is None:
            return
        self.progress.update(self.bar, completed=epoch * self.steps + step + 1)
        if not metrics:
            return
        numbers = [
            f'loss {metrics["loss"]:.3f}', f'under attack {metrics["robust"]:.1f} %', self.validation,
            shape_text(shape), f'{metrics["data_wait"]:.1f} % waiting for data', memory(self.device)]
        self.progress.update(
            self.bar, description=f'epoch {epoch + 1}/{self.epochs}',
            rate=f'{metrics["images_per_second"]:.0f} images/s')
        self.numbers.plain = '  ' + '  '.join(filter(None, numbers))

    def on_epoch(self, row: Row, *, shape: Mapping[str, float], best: bool) -> None:
        epoch = int(row['epoch'] or 0)
        self.validation = ''
        if row['eval_clean'] is not None:
            self.validation = f'validation: clean {row["eval_clean"]:.1f} %, robust {row["eval_robust"]:.1f} %'
        left = (time.monotonic() - self.started) / (epoch + 1 - self.first) * (self.epochs - epoch - 1)
        parts = [
            f'epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}', f'loss {row["train_loss"]:.3f}',
            f'under attack {row["train_robust"]:.1f} %', self.validation + (' (best)' if best else ''),
            shape_text(shape), f'{row["train_images_per_second"]:.0f} images/s',
            f'{row["train_data_wait"]:.1f} % waiting for data', f'{duration(left)} left' if left else '',
        ]
        self.on_message('  '.join(filter(None, parts)))


def shape_values(model: nn.Module) -> dict[str, float]:
    """Alpha and beta of a model by name; a parameter with one value per channel gives one entry per channel."""
    values: dict[str, float] = {}
    for prefix, module in paf_modules(model):
        for label in module.parameter_specs:
            if paf_parameters(module, label):
                name = f'{prefix}.{label}' if prefix else label
                entries = getattr(module, label).detach().flatten().tolist()
                values |= {name: entries[0]} if len(entries) == 1 else {
                    f'{name}[{i}]': value for i, value in enumerate(entries)}
    short = {name.rsplit('.', 1)[-1]: value for name, value in values.items()}
    return short if len(short) == len(values) else values


def shape_text(shape: Mapping[str, float]) -> str:
    """Alpha and beta in words; if there are many, their number and range."""
    if len(shape) <= 4:
        return '  '.join(f'{name.rsplit(".", 1)[-1]} {value:.3g}' for name, value in shape.items())
    kinds = {kind: [value for name, value in shape.items() if name.split('[')[0].endswith(kind)]
             for kind in ('alpha', 'beta')}
    return '  '.join(f'{kind} {min(v):.3g} to {max(v):.3g} ({len(v)})' for kind, v in kinds.items() if v)


def memory(device: torch.device) -> str:
    """Peak memory in words."""
    unit = 1 if sys.platform == 'darwin' else 1024  # the systems count in different units
    host = f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB'
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on {device}, {host} on the host'
    return host
