"""The checkpoints in a run's folder: written whole or not at all, and found again."""
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from timm_paf._files import whole_file
from timm_paf.models import read_checkpoint

__all__ = ['RunSaver', 'best_epoch', 'newest_checkpoint', 'read_run']

NEWEST, BEFORE = 'last.pth.tar', 'previous.pth.tar'
BEST, BEST_RAW = 'model_best.pth.tar', 'model_best_raw.pth.tar'

Row = Mapping[str, Any]


def ranking(rows: Iterable[Row], metric: str) -> list[int]:
    """The validated epochs, that with the highest value first, earlier ones first among equals."""
    scored = ((-float(row[metric]), int(row['epoch'])) for row in rows if row.get(metric) is not None)
    return [epoch for _, epoch in sorted(scored)]


def best_epoch(rows: Iterable[Row], metric: str) -> int | None:
    """The first of the ranking; None if no epoch was validated."""
    return next(iter(ranking(rows, metric)), None)


def read_run(path: Path) -> dict[str, Any]:
    """A checkpoint that a run can go on from.

    Raises:
        ValueError: If it is damaged, cannot be read, or holds weights only.
        FileNotFoundError: If there is no such file.
    """
    state = read_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums in its files
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise ValueError(f'checkpoint {path} is damaged ({damaged}).')
    if 'run' not in state:
        raise ValueError(f'checkpoint {path} holds no state of a run; start from it with --initial-checkpoint.')
    return state


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint of a run's folder, None if there is none, and what is wrong with newer ones."""
    faults = []
    for path in (folder / NEWEST, folder / BEFORE):
        try:
            read_run(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            faults.append(str(error))
        else:
            return path, faults
    return None, faults


class RunSaver:
    """Keeps the newest two checkpoints of a run and its best ones.

    `last.pth.tar` is the newest and `previous.pth.tar` the one before it. `checkpoint-N.pth.tar` is that of the end of
    epoch N, for the best epochs; `model_best.pth.tar` is the best of them. If the run averages its weights, these are
    chosen by the average's accuracy, and `model_best_raw.pth.tar` holds the raw weights where those are best. At every
    moment each file is whole, and those that the newest checkpoint counts on are there.

    Args:
        folder: Where they are.
        metric: Column of the summary that epochs are ranked by.
        raw_metric: The same for the raw weights of a run that averages them.
        hist: How many of the best to keep, at least 1.
    """

    def __init__(self, folder: Path, *, metric: str, raw_metric: str | None, hist: int) -> None:
        self.folder = folder
        self.metric = metric
        self.raw_metric = raw_metric
        self.hist = hist
        self._kept: set[int] = set()

    def save(self, state: Mapping[str, Any], rows: Sequence[Row], *, epoch_ended: bool) -> None:
        """Write a checkpoint.

        Args:
            state: What is in it.
            rows: The summary of the epochs so far.
            epoch_ended: Whether it is that of the end of the last of them.
        """
        new = self.folder / '.new.pth.tar'
        with whole_file(new) as file:
            torch.save(dict(state), file)
        kept = self._best(rows)
        if epoch_ended and (epoch := int(rows[-1]['epoch'])) in kept:
            self._link(new, self._of_epoch(epoch))
        newest = self.folder / NEWEST
        if newest.exists():
            os.replace(newest, self.folder / BEFORE)
        os.replace(new, newest)
        self._sync()
        if epoch_ended:
            self._publish(rows)
            self._prune(kept | self._kept)  # the checkpoint before this one may still be needed with its own
            self._kept = kept

    def tidy(self, rows: Sequence[Row]) -> None:
        """Put the folder into the state that belongs to a checkpoint with these rows, whatever was interrupted."""
        for partial in [*self.folder.glob('.*.tmp'), self.folder / '.new.pth.tar']:
            partial.unlink(missing_ok=True)
        self._kept = self._best(rows)
        self._publish(rows)

    def _best(self, rows: Sequence[Row]) -> set[int]:
        kept = set(ranking(rows, self.metric)[:self.hist])
        raw = best_epoch(rows, self.raw_metric) if self.raw_metric else None
        return kept if raw is None else kept | {raw}

    def _publish(self, rows: Sequence[Row]) -> None:
        """Point the names of the best checkpoints at those of their epochs."""
        best = best_epoch(rows, self.metric)
        if best is not None and self._of_epoch(best).exists():
            self._link(self._of_epoch(best), self.folder / BEST)
        raw = best_epoch(rows, self.raw_metric) if self.raw_metric else None
        if raw is None or not self._of_epoch(raw).exists():
            return
        with suppress(FileNotFoundError, ValueError):
            if read_checkpoint(self.folder / BEST_RAW)['epoch'] == raw:
                return
        state = read_checkpoint(self._of_epoch(raw))
        with whole_file(self.folder / BEST_RAW) as file:
            torch.save({name: state[name] for name in ('state_dict', 'epoch', 'arch', 'args', 'version')}, file)

    def _prune(self, kept: set[int]) -> None:
        names = {self._of_epoch(epoch).name for epoch in kept}
        for path in self.folder.glob('checkpoint-*.pth.tar'):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _of_epoch(self, epoch: int) -> Path:
        return self.folder / f'checkpoint-{epoch}.pth.tar'

    def _link(self, source: Path, target: Path) -> None:
        """Another name for a file, or a copy where there are no such names."""
        partial = target.with_name(f'.{target.name}.tmp')
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        os.replace(partial, target)
        partial.unlink(missing_ok=True)  # where both are names of one file, renaming does nothing

    def _sync(self) -> None:
        """Renamed files are on the disk when this returns, where folders can be synchronised."""
        with suppress(OSError):
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
