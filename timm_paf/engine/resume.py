"""Where a run is written, and going on with one that was interrupted."""
import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

from timm_paf.engine.checkpoint import newest_checkpoint, read_run
from timm_paf.engine.config import TrainConfig
from timm_paf.engine.settings import check_writable, free_folder
from timm_paf.engine.state import changed_settings, restore

__all__ = ['Start', 'choose_start', 'go_on', 'settings_of_run']


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run is and what it starts from.

    Args:
        folder: Its folder.
        checkpoint: What it goes on from; None for a new run.
        notes: What to say about that.
        finished: Whether there is nothing left to do.
    """
    folder: Path
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    finished: bool = False


def settings_of_run(given: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that --resume PATH names, to take in place of a YAML file.

    Args:
        given: The flags of the command line.

    Raises:
        ValueError: If the flags name another folder than that run's, or its checkpoint cannot be read.
        FileNotFoundError: If there is none.
    """
    path = given.get('resume')
    if path in (None, 'auto'):
        return None
    if 'experiment' in given or 'output' in given:
        raise ValueError(
            '--resume PATH goes on in the folder of PATH; leave out --output and --experiment, or start another run '
            'with --initial-checkpoint.')
    args = read_run(checkpoint_at(Path(path))).get('args')
    return None if not isinstance(args, dict) else {**args, 'output': 'output/train', 'experiment': None}


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that a path is, or the newest sound one of the folder that it is."""
    if not path.is_dir():
        return path
    checkpoint, faults = newest_checkpoint(path)
    if checkpoint is None:
        raise FileNotFoundError(' '.join([f'--resume {path}: no checkpoint to go on from.', *faults]))
    return checkpoint


def choose_start(config: TrainConfig) -> Start:
    """The folder of a run and the checkpoint that it goes on from.

    Raises:
        ValueError: If --resume does not fit the other settings, or a checkpoint cannot be read.
        FileExistsError: If a new run's folder holds something.
        FileNotFoundError: If there is no such checkpoint.
    """
    if config.resume is None:
        name = config.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{config.model}'
        folder = free_folder(config.output, name)
        check_writable(folder, '--output')
        return Start(folder)
    if config.resume == 'auto':
        if config.experiment is None:
            raise ValueError('--resume auto needs --experiment, the name of the run to start or to go on with.')
        folder = Path(config.output) / config.experiment
    else:
        path = Path(config.resume).absolute()
        folder = path if path.is_dir() else path.parent
        named = None if config.experiment is None else Path(config.output) / config.experiment
        if named is not None and named.absolute() != folder:
            raise ValueError(f'--resume {config.resume} is not in {named}; leave out --output and --experiment.')
    if (folder / 'report.json').exists() and not config.resume_changed:
        return Start(folder, finished=True)
    check_writable(folder, '--output')
    if config.resume == 'auto':
        checkpoint, faults = newest_checkpoint(folder)
    else:
        checkpoint, faults = checkpoint_at(Path(config.resume)), newest_checkpoint(folder)[1]
    fallback = f'going on from {checkpoint}' if checkpoint else 'there is none before it, so the run starts afresh'
    return Start(folder, checkpoint, tuple(f'{fault} {fallback}' for fault in faults))


def go_on(job: Any, checkpoint: Path) -> list[str]:
    """Bring a run to the state of its checkpoint.

    Args:
        job: The run, as `adv_train.Run`.
        checkpoint: The file.

    Returns:
        What to say about it.

    Raises:
        ValueError: If settings or data have changed and --resume-changed does not allow it, or the state does not fit.
    """
    # another node need not see the files of the first one
    several_nodes = job.processes.nodes > 1
    state = job.processes.broadcast_object(lambda: read_run(checkpoint)) if several_nodes else read_run(checkpoint)
    changed = changed_settings(job, state)
    listed = '; '.join(f'{name}: {text}' for name, text in changed.items())
    if changed and not job.config.resume_changed:
        raise ValueError(f'the run was started with other settings: {listed}. Give it those, or --resume-changed.')
    notes = restore(job, state, changed=changed)
    if changed:
        notes.insert(0, f'changed settings: {listed}')
    progress = job.progress
    return [f'going on from {checkpoint}: epoch {progress.epoch + 1}, update {progress.update}', *notes]
