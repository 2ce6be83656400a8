"""Files of a run: checkpoints and summary, written atomically, and found again."""
import csv
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from timm_paf._files import whole_file, write_text
from timm_paf.models import read_checkpoint

__all__ = [
    'CheckpointFiles', 'best_epoch', 'check_writable', 'existing_folder', 'find_checkpoint', 'newest_checkpoint',
    'read_run', 'write_summary']

NEWEST, BEFORE = 'last.pth.tar', 'previous.pth.tar'
BEST, BEST_RAW = 'model_best.pth.tar', 'model_best_raw.pth.tar'

Row = Mapping[str, Any]


def ranking(rows: Iterable[Row], metric: str | None) -> list[int]:
    """Validated epochs, the highest metric first, earlier epochs first among equals."""
    scored = ((-float(row[metric]), int(row['epoch'])) for row in rows if metric and row.get(metric) is not None)
    return [epoch for _, epoch in sorted(scored)]


def best_epoch(rows: Iterable[Row], metric: str | None) -> int | None:
    """The first of the ranking; None without a validated epoch."""
    return next(iter(ranking(rows, metric)), None)


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint with the state of a run; ValueError if it is damaged or holds weights only."""
    state = read_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the checksums in its files
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise ValueError(f'checkpoint {path} is damaged ({damaged}).')
    if 'run' not in state:
        raise ValueError(f'checkpoint {path} holds no state of a run; start from it with --initial-checkpoint.')
    return state


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run's folder (None if there is none), and the faults of newer ones."""
    faults: list[str] = []
    for path in (folder / NEWEST, folder / BEFORE):
        try:
            read_run(path)
            return path, faults
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            faults.append(str(error))
    return None, faults


def find_checkpoint(path: Path) -> Path:
    """The path itself if it is a file, or the newest intact checkpoint in the folder."""
    if not path.is_dir():
        return path
    checkpoint, faults = newest_checkpoint(path)
    if checkpoint is None:
        raise FileNotFoundError(' '.join([f'--resume {path}: no checkpoint to resume from.', *faults]))
    return checkpoint


class CheckpointFiles:
    """The newest two checkpoints of a run and its best ones.

    `last.pth.tar` is the newest and `previous.pth.tar` the one before it; `checkpoint-N.pth.tar` is from the end of
    one of the best epochs, `model_best.pth.tar` the best of them. If the run averages its weights, the accuracy of the
    average chooses these, and `model_best_raw.pth.tar` holds the raw weights of their best epoch. At every moment each
    file is complete, and the files that the newest checkpoint needs exist.

    Args:
        folder: Folder of the run.
        metric: Column of the summary that ranks epochs; `raw_metric` is that of raw weights if the run averages them.
        hist: Number of best checkpoints to keep, at least 1.
    """

    def __init__(self, folder: Path, *, metric: str, raw_metric: str | None, hist: int) -> None:
        self.folder, self.metric, self.raw_metric, self.hist = folder, metric, raw_metric, hist
        self.best = folder / BEST
        self._kept: set[int] = set()

    def save(self, state: Mapping[str, Any], rows: Sequence[Row], *, epoch_ended: bool) -> None:
        """Write a checkpoint; `epoch_ended`: it is from the end of the last epoch in `rows`."""
        new = self.folder / '.new.pth.tar'
        save_state(dict(state), new)
        kept = self._best(rows)
        if epoch_ended and (epoch := int(rows[-1]['epoch'])) in kept:
            link(new, self._of_epoch(epoch))
        newest = self.folder / NEWEST
        if newest.exists():
            os.replace(newest, self.folder / BEFORE)
        os.replace(new, newest)
        with suppress(OSError):  # wait until the new names are on the disk, where the system supports it
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if epoch_ended:
            self._publish(rows)
            names = {self._of_epoch(epoch) for epoch in kept | self._kept}  # the previous one may still need its own
            for path in set(self.folder.glob('checkpoint-*.pth.tar')) - names:
                path.unlink(missing_ok=True)
            self._kept = kept

    def tidy(self, rows: Sequence[Row]) -> None:
        """Bring the folder into the state that belongs to a checkpoint with these rows, after any interruption."""
        for partial in [*self.folder.glob('.*.tmp'), self.folder / '.new.pth.tar']:
            partial.unlink(missing_ok=True)
        self._kept = self._best(rows)
        self._publish(rows)

    def _best(self, rows: Sequence[Row]) -> set[int]:
        return {*ranking(rows, self.metric)[:self.hist], *ranking(rows, self.raw_metric)[:1]}

    def _publish(self, rows: Sequence[Row]) -> None:
        """Point the names of the best checkpoints at those of their epochs."""
        best = best_epoch(rows, self.metric)
        if best is not None and self._of_epoch(best).exists():
            link(self._of_epoch(best), self.best)
        raw = best_epoch(rows, self.raw_metric)
        if raw is None or not self._of_epoch(raw).exists():
            return
        with suppress(FileNotFoundError, ValueError):
            if read_checkpoint(self.folder / BEST_RAW)['epoch'] == raw:
                return
        state = read_checkpoint(self._of_epoch(raw))
        save_state({name: state[name] for name in ('state_dict', 'epoch', 'arch', 'args', 'version')},
                   self.folder / BEST_RAW)

    def _of_epoch(self, epoch: int) -> Path:
        return self.folder / f'checkpoint-{epoch}.pth.tar'


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that appears complete or not at all."""
    with whole_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the file's own error, which torch replaces
                raise error.__context__ from None
            raise


def link(source: Path, target: Path) -> None:
    """Give a file another name; copy it where the file system has no hard links."""
    partial = target.with_name(f'.{target.name}.tmp')
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # replacing does nothing if both names already are the same file


def write_summary(rows: Sequence[Row], path: Path) -> None:
    """Write summary.csv in the form of timm's `update_summary`, but atomically: no row is missing or repeated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), path)


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest existing one above it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_writable(folder: Path, flag: str) -> None:
    """Raise OSError if the folder cannot be made or does not accept files."""
    found = existing_folder(folder)
    if not found.is_dir():
        raise NotADirectoryError(f'{flag}: {found} is a file; expected a folder, choose another name.')
    try:  # permissions alone are not enough to know; a file without a name leaves no trace
        with tempfile.TemporaryFile(dir=found):
            pass
    except OSError as error:
        raise OSError(f'{flag}: cannot write in {found} ({error.strerror}); choose another folder.') from None
