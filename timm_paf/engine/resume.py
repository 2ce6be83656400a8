"""The folder of a run, and the checkpoint that it resumes from."""
import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

from timm_paf.engine.checkpoint_files import check_writable, find_checkpoint, newest_checkpoint, read_run
from timm_paf.engine.train_config import TrainConfig

__all__ = ['RunFinished', 'Start', 'find_start', 'settings_of_run']


class RunFinished(Exception):
    """The run to resume is finished; there is nothing to do."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Folder of a run, checkpoint to resume from (None for a new run), lines to show, and whether it is finished."""
    folder: Path
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    finished: bool = False


def settings_of_run(given: dict[str, Any]) -> dict[str, Any] | None:
    """Settings of the run that --resume PATH names, for the flags `given`; None without such a path."""
    if (path := given.get('resume')) in (None, 'auto'):
        return None
    if 'experiment' in given or 'output' in given:
        raise ValueError(
            '--resume PATH resumes in the folder of PATH; leave out --output and --experiment, or start another run '
            'with --initial-checkpoint.')
    args = read_run(find_checkpoint(Path(path))).get('args')
    return None if not isinstance(args, dict) else {
        **args, 'output': 'output/train', 'experiment': None, 'resume_changed': False}


def find_start(config: TrainConfig) -> Start:
    """The folder of a run and its checkpoint; ValueError or OSError if --resume or the folder cannot be used."""
    folder = Path(config.output) / (config.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{config.model}')
    if config.resume is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            state = 'holds a finished run' if (folder / 'report.json').exists() else 'is not empty'
            raise FileExistsError(f'{folder} {state}; choose another --experiment or --output, or remove it.')
        check_writable(folder, '--output')
        return Start(folder)
    if config.resume == 'auto':
        if config.experiment is None:
            raise ValueError('--resume auto needs --experiment, the name of the run to start or to resume.')
    else:
        path, named = Path(config.resume).absolute(), folder
        folder = path if path.is_dir() else path.parent
        if config.experiment is not None and named.absolute() != folder:
            raise ValueError(f'--resume {config.resume} is not in {named}; leave out --output and --experiment.')
    if (folder / 'report.json').exists() and not config.resume_changed:
        newest, _ = newest_checkpoint(folder)
        trained = read_run(newest)['args']['epochs'] if newest else config.epochs
        if trained != config.epochs:
            raise ValueError(
                f'--resume: {folder} is finished after {trained} epochs, and --epochs is {config.epochs}. Add '
                '--resume-changed to train on, with the learning rates of the new number of epochs.')
        return Start(folder, finished=True)
    check_writable(folder, '--output')
    checkpoint, faults = newest_checkpoint(folder)
    if config.resume != 'auto':
        checkpoint = find_checkpoint(Path(config.resume))
    fallback = f'Resuming from {checkpoint}.' if checkpoint else 'No older checkpoint exists, so the run starts again.'
    return Start(folder, checkpoint, tuple(f'{fault} {fallback}' for fault in faults))
