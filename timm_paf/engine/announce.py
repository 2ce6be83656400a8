"""What people see of data while they are opened."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from timm_paf.data import MixedBatches, sample_report
from timm_paf.data.stored import Progress as Callback

__all__ = ['announce', 'reading_bar']


@contextmanager
def reading_bar(console: Console | None) -> Iterator[Callback | None]:
    """A bar on a terminal for archives that have to be unpacked; gives what `open_archive` takes as `progress`."""
    if console is None or not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn('left'),
        console=console, transient=True,
    ) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show


def announce(console: Console, batches: MixedBatches) -> None:
    """A line about what each source holds, so that a wrong file is seen before hours of training."""
    synthetic = batches.synthetic or ()
    sources = [synthetic] if not isinstance(synthetic, Sequence) else synthetic
    for kind, source in (('training images', batches.real), *(('synthetic images', source) for source in sources)):
        if report := sample_report(source):
            console.print(
                f'{kind}: {source.name}: {report}', highlight=False, markup=False, soft_wrap=not console.is_terminal)
