"""What a training run shows: a live bar on a terminal, one line an epoch elsewhere."""
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

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

__all__ = ['AttackView', 'TrainingView', 'announcement', 'duration', 'memory', 'time_estimate']


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = seconds / 60
    return f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h'


class AttackView:
    """Progress of AutoAttack: a line that changes on a terminal, else a line from time to time; used as a context.

    Args:
        console: Where to write.
        title: What is measured on.
        every: Seconds between two lines where there is no terminal.
    """

    def __init__(self, console: Console, title: str, *, every: float = 60.) -> None:
        self.console, self.title, self.every = console, title, every
        self.status = console.status(f'measuring on {title}')
        self.written = time.monotonic()

    def __enter__(self) -> 'AttackView':
        self.status.start()
        return self

    def __exit__(self, *exception) -> None:
        self.status.stop()

    def part(self, what: str, done: int, total: int) -> None:
        """Show how far another part of the measurement is."""
        self._show(f'{what} {done}/{total}')

    def progress(self, component: str, done: int, total: int, standing: int, left: float) -> None:
        """Show where AutoAttack is, as `timm_paf.attacks.autoattack` tells it."""
        text = f'AutoAttack on {self.title}: {component} {done}/{total} images, {standing} standing'
        if left > 0:  # neither 0 nor NaN, which stands for not known yet
            text += f', up to {duration(left)} left'
        self._show(text)

    def _show(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(text)
        elif time.monotonic() - self.written >= self.every:
            self.written = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)


class TrainingView:
    """Progress of a run of `epochs` times `steps` updates; used as a context.

    Args:
        console: Where to write.
        epochs: Number of epochs.
        steps: Updates an epoch.
        first: The epoch that it begins with.
    """

    def __init__(self, console: Console, *, epochs: int, steps: int, first: int = 0) -> None:
        self.console = console
        self.epochs = epochs
        self.steps = steps
        self.first = first
        self.started = time.monotonic()
        self.validation = ''
        self.live: Live | None = None
        if console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(), TextColumn('[bold]{task.description}'), BarColumn(),
                MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn('left'), console=console)
            self.bar = self.progress.add_task(f'epoch 1/{epochs}', total=epochs * steps, rate='')
            self.numbers = Text()
            self.live = Live(Group(self.progress, self.numbers), console=console, transient=True)

    def __enter__(self) -> 'TrainingView':
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        # a line stays a line where there is no screen to fit
        self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)

    def step(
            self,
            epoch: int,
            step: int,
            *,
            loss: float | None,
            robust: float | None,
            images_per_second: float | None,
            shape: Mapping[str, float],
            data_wait: float | None = None,
            memory: str = '',
    ) -> None:
        """Show one update: the running means of the epoch, in which `robust` is the training attack's.

        Args:
            epoch: Number from 0.
            step: Number in the epoch from 0.
            loss: Mean loss; None if it has not been read back from the device yet, as with the next ones.
            robust: Accuracy in percent under the attack.
            images_per_second: Images trained on each second, real and synthetic.
            shape: alpha and beta by name.
            data_wait: Share of the epoch's time in percent that training stood waiting for data.
            memory: The most memory used, in words.
        """
        if self.live is None:
            return
        done = epoch * self.steps + step + 1
        if loss is None:
            self.progress.update(self.bar, completed=done)
            return
        numbers = [
            f'loss {loss:.3f}', f'under attack {robust:.1f} %', self.validation, shape_text(shape),
            wait_text(data_wait), memory]
        self.progress.update(
            self.bar, completed=done, description=f'epoch {epoch + 1}/{self.epochs}',
            rate=f'{images_per_second:.0f} images/s')
        self.numbers.plain = '  ' + '  '.join(filter(None, numbers))

    def epoch(
            self,
            epoch: int,
            *,
            loss: float,
            robust: float,
            val_clean: float | None,
            val_robust: float | None,
            images_per_second: float,
            shape: Mapping[str, float],
            best: bool,
            data_wait: float | None = None,
    ) -> None:
        """Show a finished epoch; all accuracies in percent, None where it was not validated."""
        self.validation = ''
        if val_clean is not None:
            self.validation = f'validation: clean {val_clean:.1f} %, robust {val_robust:.1f} %'
        left = (time.monotonic() - self.started) / (epoch + 1 - self.first) * (self.epochs - epoch - 1)
        parts = [
            f'epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}', f'loss {loss:.3f}',
            f'under attack {robust:.1f} %', self.validation + (' (best)' if best else ''), shape_text(shape),
            f'{images_per_second:.0f} images/s', wait_text(data_wait), f'{duration(left)} left' if left else '',
        ]
        self.say('  '.join(filter(None, parts)))


def wait_text(data_wait: float | None) -> str:
    """The share of time spent waiting for data, in percent."""
    return '' if data_wait is None else f'{data_wait:.1f} % waiting for data'


def shape_text(shape: Mapping[str, float]) -> str:
    """Alpha and beta for people; with many of them, their number and range."""
    if len(shape) <= 4:
        return '  '.join(f'{name.rsplit(".", 1)[-1]} {value:.3g}' for name, value in shape.items())
    texts = []
    for kind in ('alpha', 'beta'):
        values = [value for name, value in shape.items() if name.split('[')[0].endswith(kind)]
        if values:
            texts.append(f'{kind} {min(values):.3g}…{max(values):.3g} ({len(values)})')
    return '  '.join(texts)


def announcement(job: Any) -> str:
    """One line that says what is trained on what."""
    config, batches = job.config, job.batches
    parameters = sum(p.numel() for p in job.task.get_trainable_module().parameters())
    attack = 'no attack' if config.task == 'plain' else f'PGD-{config.attack_steps} at eps {config.eps}'
    several = f', {job.processes.world_size} processes' if job.processes.is_distributed else ''
    return (
        f'{config.model} ({parameters:,} parameters) on {config.dataset}: {len(batches.real):,} real images, '
        f'{batches.synthetic_per_batch} synthetic in {config.batch_size}, {job.epochs} epochs of '
        f'{job.updates_per_epoch} updates, {attack}, on {job.processes.device}{several}')


def time_estimate(job: Any, seconds_per_image: float) -> str:
    """How long the run will take, from the first updates."""
    config = job.config
    passes = 1 if config.task == 'plain' else config.attack_steps + 1
    updates = job.epochs * job.updates_per_epoch - job.progress.update
    training = updates * config.batch_size / job.processes.world_size * seconds_per_image
    text = f'about {duration(training)} of training'
    if config.autoattack == 'standard':
        # An image that stands to the end costs AutoAttack 1910 forward and backward passes and 5949 forward passes;
        # a forward pass is a third of both together. Most images do not stand that long.
        attacked = min(config.n_examples or len(job.test), len(job.test))
        measuring = attacked * (1910 + 5949 / 3) * seconds_per_image / passes
        text += f', then up to {duration(measuring)} of AutoAttack on {attacked} images'
    return text


def memory(device: torch.device) -> str:
    """The most memory used so far."""
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on {device}, {_resident()} on the host'
    return _resident()


def _resident() -> str:
    unit = 1 if sys.platform == 'darwin' else 1024  # the only place where the two differ
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB'
