"""Progress of a run on the terminal, and estimates of its time and memory."""
import dataclasses
import math
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import nn

from timm_paf.activations import paf_modules, paf_parameters
from timm_paf.engine.callbacks import Callback, Row

__all__ = ['AttackView', 'TimeLeft', 'TrainingView', 'duration', 'memory', 'say', 'shape_values']


def duration(seconds: float) -> str:
    """Seconds in words: '140 s', '12 min', '3.5 h'; empty for NaN."""
    if math.isnan(seconds):
        return ''
    if seconds < 180:
        return f'{seconds:.0f} s'
    minutes = seconds / 60
    return f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.{int(minutes < 6000)}f} h'


def say(console: Console, text: str, style: str = '') -> None:
    """Print lines of text. A terminal wraps them, with an indent; elsewhere there is no width to wrap them to."""
    if console.is_terminal:
        text = '\n'.join(
            textwrap.fill(line, console.width, subsequent_indent='    ', break_on_hyphens=False)
            for line in text.splitlines())
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


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
        text = f'measuring on {self.title}: {part} {done}/{total}, {robust} {kind}'
        if left > 0:  # neither 0 nor NaN, which means not known yet
            text += f', about {duration(left)} left'
        self._show(text)

    def _show(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(text)
        elif time.monotonic() - self.written >= self.every:
            self.written = time.monotonic()
            say(self.console, text)


@dataclasses.dataclass(kw_only=True)
class TimeLeft:
    """Estimate of the time that a run has left, with its validations and its final measurement.

    Its unit of work is a pass: an image that goes forward or backward through the network, in one process. All passes
    count as equally fast. AutoAttack needs long for robust images: their share is taken as one half at first, and more
    and more as the validated accuracy, so that the estimate does not jump.
    """
    epochs: int  #: Number of epochs.
    images: float  #: Training images of an epoch.
    passes: int  #: Passes of an update for one of these images.
    interval: int  #: Number of epochs between validations.
    validation: float  #: Passes of a validation.
    measurement: float = 0.  #: Passes of the final clean accuracy and PGD.
    autoattack: tuple[float, float] = (0., 0.)  #: Passes of AutoAttack for all images; those added if all are robust.
    robust: float = 0.5  #: Validated share of robust images.
    seconds_per_pass: float = math.nan  #: Measured from the first call of `seconds` on.
    clock: Callable[[], float] = time.monotonic
    start: tuple[float, float] | None = None

    def work(self, epochs: float, finished: int) -> tuple[float, float]:
        """Passes that are left of training with validation, and of the final measurement.

        Args:
            epochs: Number of epochs whose updates are done; a fraction within an epoch.
            finished: Number of epochs that are validated as well.
        """
        validations = -(-self.epochs // self.interval) - finished // self.interval if finished < self.epochs else 0
        robust = 0.5 + finished / self.epochs * (self.robust - 0.5)
        return ((self.epochs - epochs) * self.images * self.passes + validations * self.validation,
                self.measurement + self.autoattack[0] + robust * self.autoattack[1])

    def seconds(self, epochs: float, finished: int) -> float:
        """Seconds left; NaN at the first call, from which on the speed is measured. Arguments as `work`."""
        now, (training, measurement) = self.clock(), self.work(epochs, finished)
        since, before = self.start = self.start or (now, training)
        if training < before:
            self.seconds_per_pass = (now - since) / (before - training)
        return (training + measurement) * self.seconds_per_pass

    def words(self, epochs: float, finished: int) -> str:
        """Time that is left of each part, in words; arguments as `work`."""
        training, measurement = (duration(passes * self.seconds_per_pass) for passes in self.work(epochs, finished))
        then = f', then about {measurement} of measurement on the test images' if self.measurement else ''
        return f'about {training} of training and validation{then}'


class TrainingView(Callback):
    """Progress of training with `steps` updates per epoch: a row per epoch, and on a terminal the row in progress."""

    def __init__(self, console: Console, *, steps: int, device: torch.device, time: TimeLeft) -> None:
        self.console, self.epochs, self.steps, self.device = console, time.epochs, steps, device
        self.time, self.width = time, max(5, 2 * len(str(time.epochs)) + 1)
        self.headed = self.estimated = self.waited = False
        self.live: Live | None = None
        if console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn('{task.fields[note]}'), console=console)
            self.bar = self.progress.add_task('', total=self.epochs * steps, note='')
            self.rows = Text(no_wrap=True)
            self.live = Live(Group(self.rows, self.progress), console=console, transient=True)

    def on_start(self, rows: Sequence[Row]) -> None:
        if self.live is not None:
            self.live.start()

    def on_end(self, error: BaseException | None) -> None:
        if self.live is not None:
            self.live.stop()

    def on_message(self, text: str) -> None:
        say(self.console, text)

    def on_update(self, epoch: int, step: int, metrics: Mapping[str, float], shape: Mapping[str, float]) -> None:
        if self.live is not None:
            self.progress.update(self.bar, completed=epoch * self.steps + step + 1)
        if not metrics:
            return
        done = epoch + (step + 1) / self.steps
        seconds = self.time.seconds(done, epoch)
        if not (self.estimated or math.isnan(seconds)):
            self.on_message(self.time.words(done, epoch))
            self.estimated = True
        if self.live is not None:
            values = {f'train_{name}': value for name, value in metrics.items()}
            self.rows.plain = '\n'.join([
                *([] if self.headed else self.headings(shape)), self.row({'epoch': epoch, **values}, shape, seconds)])
            note = f'{metrics["data_wait"]:.1f} % waiting for data, {memory(self.device)}'
            self.progress.update(self.bar, note=note if step + 1 < self.steps else 'validation and checkpoint')

    def on_epoch(self, row: Row, *, shape: Mapping[str, float], best: bool) -> None:
        epoch, wait = int(row['epoch'] or 0), row.get('train_data_wait') or 0.
        if best and row.get('eval_robust') is not None:
            self.time.robust = (row['eval_robust'] or 0.) / 100
        lines = [*([] if self.headed else self.headings(shape)),
                 self.row(row, shape, self.time.seconds(epoch + 1, epoch + 1), best=best)]
        self.headed = True
        say(self.console, '\n'.join(lines))
        if wait > 10 and not self.waited:
            self.on_message(f'{wait:.0f} % of the training time of epoch {epoch + 1} went into waiting for data')
            self.waited = True

    def headings(self, shape: Mapping[str, float]) -> list[str]:
        """The two lines above the rows."""
        return [f'{"":{self.width}} {" training ":-^16} {" validation ":-^16}', self._line(
            'epoch', 'loss', 'robust %', 'clean %', 'robust %', '', *shape_means(shape), 'images/s', 'left')]

    def row(self, row: Row, shape: Mapping[str, float], left: float, *, best: bool = False) -> str:
        """A row of summary.csv in one line of at most 80 characters, with up to 999 epochs."""
        accuracies = [row.get(name) for name in ('train_robust', 'eval_clean', 'eval_robust')]
        speed = row['train_images_per_second'] or 0.
        return self._line(
            f'{int(row["epoch"] or 0) + 1}/{self.epochs}', number(row['train_loss'] or 0., 7),
            *('' if value is None else f'{value:.1f}' for value in accuracies), 'best' if best else '',
            *map(number, shape_means(shape).values()), f'{speed:.{0 if speed >= 100 else 1}f}', duration(left))

    def _line(self, *cells: str) -> str:
        widths = (self.width, 7, 8, 7, 8, 4, *[8] * (len(cells) - 8), 8, 6)
        return ' '.join(f'{cell:>{width}}' for cell, width in zip(cells, widths, strict=True)).rstrip()


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


def shape_means(shape: Mapping[str, float]) -> dict[str, float]:
    """Means of all alphas and of all betas of `shape_values`, of those that there are."""
    kinds = {kind: [value for name, value in shape.items() if name.split('[')[0].endswith(kind)]
             for kind in ('alpha', 'beta')}
    return {kind: sum(values) / len(values) for kind, values in kinds.items() if values}


def number(value: float, width: int = 8) -> str:
    """A number in at most `width` characters: with three decimals, or with an exponent if these show less."""
    small = value != 0 and abs(value) < 1e-3
    texts = [f'{value:{style}}' for style in ('.3f', '.1e', '.0e')[small:]]
    return next((text for text in texts if len(text) <= width), texts[-1])


def memory(device: torch.device) -> str:
    """Peak memory in words."""
    unit = 1 if sys.platform == 'darwin' else 1024  # the systems count in different units
    host = f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB'
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on {device}, {host} on the host'
    return host
