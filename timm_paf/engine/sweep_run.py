"""The runs of a sweep: worker processes, time limit, and a Slurm array. A cell is done when its report.json exists."""
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import yaml

from timm_paf._files import write_text
from timm_paf._versions import available_cores, device_names
from timm_paf.engine.checkpoint_files import best_epoch
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.commands import seconds_per_image
from timm_paf.engine.distributed import StopSignals
from timm_paf.engine.measurement import measure
from timm_paf.engine.progress import duration
from timm_paf.engine.resume import RunFinished
from timm_paf.engine.sweep import Cell, Sweep
from timm_paf.engine.trainer import Trainer
from timm_paf.engine.validate_config import ValidateConfig

__all__ = ['cell_state', 'check_sweep', 'list_cells', 'run_cell', 'run_sweep', 'submit_sweep']

FAILED, STOPPED, ELSEWHERE = 11, 12, 13  # statuses of workers, which nothing else ends with
STATES = {0: 'done', FAILED: 'failed', STOPPED: 'interrupted', ELSEWHERE: 'running elsewhere'}
SAVING = 30.  # seconds, before the time limit, that a cell has for its checkpoint


def check_sweep(sweep: Sweep, output: Path) -> None:
    """Raise ValueError if the folder of a cell holds a run with other settings."""
    for cell in sweep.cells:
        args = output / cell.name / 'args.yaml'
        if args.exists() and (others := cell.differences(yaml.safe_load(args.read_text()))):
            raise ValueError(
                f'{args.parent} was trained with other settings ({", ".join(others)}); choose another --output, or '
                'remove the folder.')


def cell_state(folder: Path) -> str:
    """State of a cell, from its folder: 'done', 'failed', 'running elsewhere', 'interrupted' or 'new'."""
    if (folder / 'report.json').exists():
        return 'done'
    if not folder.exists():
        return 'new'
    if (folder / '.lock').exists():
        with _claim(folder) as free:
            if not free:
                return 'running elsewhere'
    return 'failed' if (folder / 'error.txt').exists() else 'interrupted'


def list_cells(sweep: Sweep, output: Path, *, workers: int = 1, device: str | None = None) -> list[str]:
    """Lines on the cells and their states, with the time that the first one that is not done will take."""
    states = {cell.name: cell_state(output / cell.name) for cell in sweep.cells}
    lines = [f'{state:<12} {name}' for name, state in states.items()]
    lines.append(f'{len(states)} cells: {", ".join(f"{n} {state}" for state, n in Counter(states.values()).items())}')
    left = [cell for cell in sweep.cells if states[cell.name] != 'done']
    if left:
        config = dataclasses.replace(left[0].config(output, device=device), dry_run=True, resume=None, experiment=None)
        trainer = Trainer(config)
        lines.append(
            f'{left[0].name}: {trainer.time_estimate(seconds_per_image(trainer))}; {len(left)} cells are left, '
            f'{workers} at a time')
    return lines


def run_cell(cell: Cell, output: Path, *, device: str | None = None) -> None:
    """Train a cell and measure its last and its best checkpoint; continues where an earlier call stopped.

    In addition to the files of a run, the folder gets cell.json (what the cell is, and the time it took) and
    last/report.json (the last checkpoint, unless it is the best one).

    Raises:
        ValueError: If settings, data and model do not fit together.
        RunFailed: If the run cannot continue.
        RunStopped: After SIGTERM or SIGINT; a checkpoint is written.
    """
    folder, started = output / cell.name, time.monotonic()
    file, last = folder / 'cell.json', folder / 'last'
    facts: dict[str, Any] = {
        **{name: getattr(cell, name) for name in ('activation', 'parameters', 'learned', 'options', 'seed')},
        'threads': torch.get_num_threads(), 'machine': '; '.join(device_names()), 'seconds': 0.}
    if file.exists():
        facts |= json.loads(file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(facts), file)
    try:
        trainer = Trainer(cell.config(output, device=device))
        trainer.fit()
        config = trainer.config
        known = {field.name for field in dataclasses.fields(ValidateConfig)}
        same = {name: value for name, value in config.to_dict().items() if name in known - {'output', 'resume'}}
        is_best = best_epoch(trainer.progress.rows, trainer.files.metric) == trainer.epochs - 1
        if not is_best and not (last / 'report.json').exists():
            measure(ValidateConfig(**{
                **same, 'checkpoint': str(folder / 'last.pth.tar'), 'output': str(last), 'resume': True, 'trust': False,
                'html': False}), console=trainer.console)
        trainer.evaluate()
    except RunFinished:
        pass
    finally:  # seconds of all calls together; those of a killed process are missing
        facts['seconds'] += time.monotonic() - started
        write_text(json.dumps(facts), file)


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Whether no other process runs this cell; until the end of the block, no other process can start it."""
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _work(cell: Cell, output: Path, device: str | None, threads: int) -> None:
    """Run a cell in this process, which ends with a status of STATES."""
    folder = output / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker does not outlive the sweep
        def end_with_parent(parent: Any = parent) -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with _claim(folder) as free, open(folder / 'log.txt', 'a') as log:
        if not free:
            sys.exit(ELSEWHERE)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        (folder / 'error.txt').unlink(missing_ok=True)
        try:
            run_cell(cell, output, device=device)
        except RunStopped as stopped:
            print(stopped)
            sys.exit(STOPPED)
        except Exception as error:
            traceback.print_exc()
            kind = '' if isinstance(error, (ValueError, OSError, RunFailed)) else f'{type(error).__name__}: '
            write_text(f'{kind}{" ".join(str(error).split())}\n', folder / 'error.txt')
            sys.exit(FAILED)


def run_sweep(
        sweep: Sweep, output: Path, *, workers: int = 1, devices: Sequence[str] = (), threads: int | None = None,
        time_limit: float | None = None, say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Run all cells that are not done, each in a process of its own; continues interrupted cells.

    Several calls, on this machine or on others with the same folder, share the cells. A failed cell is tried again by
    the next call, and once by each call.

    Args:
        sweep: The cells.
        output: Folder of the sweep.
        workers: Number of cells to run at the same time.
        devices: Devices that the workers share; by default each worker chooses.
        threads: Number of CPU threads of a worker; by default the available cores divided by `workers`.
        time_limit: Seconds after which no worker runs any more. Up to 30 s before that they are asked to stop.
        say: Shows a line.

    Returns:
        State of each cell at the end, as `cell_state`.

    Raises:
        ValueError: As `check_sweep`.
    """
    started = time.monotonic()
    check_sweep(sweep, output)
    states = {cell.name: cell_state(output / cell.name) for cell in sweep.cells}
    waiting = sorted((cell for cell in sweep.cells if states[cell.name] != 'done'),
                     key=lambda cell: states[cell.name] == 'running elsewhere')  # these last, they may be done by then
    slots: list[tuple[Any, Cell] | None] = [None] * min(workers, len(waiting))
    limit = time_limit if time_limit is not None else float('inf')
    threads, context = threads or max(1, available_cores() // workers), multiprocessing.get_context('spawn')
    number, stopping = len(states) - len(waiting), False
    with StopSignals() as stop:
        while waiting or any(slots):
            for index, slot in enumerate(slots):
                if slot is None and waiting and not stopping:
                    cell = waiting.pop(0)
                    if cell_state(output / cell.name) in ('done', 'running elsewhere'):
                        continue  # by another call
                    device = devices[index % len(devices)] if devices else None
                    process = context.Process(target=_work, args=(cell, output, device, threads))
                    process.start()
                    slots[index], number = (process, cell), number + 1
                    say(f'[{number}/{len(states)}] {cell.name}{f" on {device}" if device else ""}')
            connection.wait([process.sentinel for process, _ in filter(None, slots)], timeout=0.5)
            now = time.monotonic() - started
            if not stopping and (stop.received or now > limit - min(SAVING, limit / 4)):
                stopping, waiting = True, []
                for process, _ in filter(None, slots):
                    process.terminate()
            for index, slot in enumerate(slots):
                if slot is not None and now > limit:
                    slot[0].kill()
                if slot is not None and not slot[0].is_alive():
                    slots[index] = None
                    say(_outcome(*slot, output=output, stopping=stopping))
    return {cell.name: cell_state(output / cell.name) for cell in sweep.cells}


def _outcome(process: Any, cell: Cell, *, output: Path, stopping: bool) -> str:
    """A line on a cell whose process has ended; a process that ended by itself without a reason has failed."""
    folder, code = output / cell.name, process.exitcode
    if code not in STATES and not stopping:
        reason = f'signal {-code}' if code < 0 else f'status {code}'
        write_text(f'the process ended with {reason}; see log.txt, and check the memory.\n', folder / 'error.txt')
        code = FAILED
    state = STATES.get(code, 'interrupted')
    seconds = json.loads((folder / 'cell.json').read_text())['seconds'] if (folder / 'cell.json').exists() else 0.
    error = f': {(folder / "error.txt").read_text().strip()}' if state == 'failed' else ''
    return f'{state}: {cell.name}, {duration(seconds)}{error}'


def submit_sweep(
        sweep: Sweep, output: Path, parameters: Mapping[str, Any], *, workers: int = 1, devices: Sequence[str] = (),
        threads: int | None = None) -> list[str]:
    """Submit a Slurm array whose jobs share the cells; needs submitit (`pip install 'timm-paf[slurm]'`).

    Args:
        sweep: The cells.
        output: Folder of the sweep, which all jobs see; its folder slurm receives the logs of the jobs.
        parameters: Parameters of submitit. `timeout_min` is also the time limit of a job, less a minute; `array_size`,
            1 by default, is the number of jobs.
        workers, devices, threads: As for `run_sweep`, for each job.

    Returns:
        Numbers of the jobs.

    Raises:
        ValueError: If submitit is missing, or does not accept the parameters.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--slurm needs submitit; install it with: pip install 'timm-paf[slurm]'") from None
    given = {'timeout_min': 60, **parameters}
    count, cluster = int(given.pop('array_size', 1)), given.pop('cluster', None)
    try:
        executor = submitit.AutoExecutor(folder=output / 'slurm', cluster=cluster)
        executor.update_parameters(**given)
    except (NameError, TypeError, RuntimeError) as error:
        raise ValueError(f'--slurm: {error}') from None
    with executor.batch():  # one array
        jobs = [executor.submit(
            run_sweep, sweep, output, workers=workers, devices=devices, threads=threads,
            time_limit=60. * given['timeout_min'] - 60) for _ in range(count)]
    return [str(job.job_id) for job in jobs]
