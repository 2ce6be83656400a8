"""What a checkpoint holds beside the weights, so that a run goes on as if it had never stopped."""
import csv
import dataclasses
import io
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import nn

from timm_paf._versions import library_versions
from timm_paf.data.files import whole_file
from timm_paf.engine.config import INCIDENTAL, plain

__all__ = ['Progress', 'capture', 'changed_settings', 'restore', 'write_summary']

FORMAT = 1


@dataclasses.dataclass
class Progress:
    """How far a run is; the sums are those of the epoch that is in progress.

    Args:
        epoch: Epochs that are finished, validated and recorded.
        update: Updates done.
        loss: Sum of the images' losses in this process, on its device.
        correct: How many of them were classified correctly, int64.
        images: How many there were.
        seconds: Time it took.
        waited: Part of it spent waiting for data.
        rows: The summary, one row an epoch.
        activations: `activation_summary` after the last update of the epoch, whose gradients are gone after a resume.
    """
    loss: torch.Tensor
    correct: torch.Tensor
    epoch: int = 0
    update: int = 0
    images: int = 0
    seconds: float = 0.
    waited: float = 0.
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    activations: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def start(cls, device: torch.device) -> 'Progress':
        """Of a run that has not begun."""
        wide = torch.float32 if device.type == 'mps' else torch.float64  # which has no wider one
        return cls(torch.zeros((), dtype=wide, device=device), torch.zeros((), dtype=torch.int64, device=device))

    def next_epoch(self) -> None:
        """Clear the sums."""
        self.loss, self.correct = torch.zeros_like(self.loss), torch.zeros_like(self.correct)
        self.images, self.seconds, self.waited, self.activations = 0, 0., 0., {}


def capture(job: Any) -> dict[str, Any] | None:
    """The state of a run; every process takes part, and the first one has it.

    Args:
        job: The run, as `adv_train.Run`.
    """
    progress, task = job.progress, job.task
    ranks = job.processes.gather_object({
        'random': random_state(job.processes.device), 'attack': attack_state(task),
        'loss': progress.loss.cpu(), 'correct': progress.correct.cpu(), 'images': progress.images,
        'seconds': progress.seconds, 'waited': progress.waited,
        # BatchNorm's running statistics are each process's own
        'buffers': buffers(task.get_trainable_module()) if job.processes.is_distributed else {},
        'buffers_ema': buffers(task.get_trainable_module(ema=True)) if job.processes.is_distributed else {},
    })
    if not job.processes.is_primary:
        return None
    rows = progress.rows
    return {
        'epoch': progress.epoch - 1,  # the last finished one, as timm counts
        'arch': job.config.model,
        'args': plain(job.config),
        'optimizer': job.optimizer.state_dict(),
        'version': 2,
        **task.get_checkpoint_state(),
        **task.get_checkpoint_state(ema=True),
        **({'metric': rows[-1][job.saver.metric]} if rows and rows[-1].get(job.saver.metric) is not None else {}),
        **({'amp_scaler': job.updates.scaler.state_dict()} if job.updates.scaler is not None else {}),
        'run': {
            'format': FORMAT, 'epoch': progress.epoch, 'update': progress.update, 'rows': rows, 'ranks': ranks,
            'activations': progress.activations, 'data': data_identity(job), 'versions': library_versions(),
        },
    }


def restore(job: Any, state: Mapping[str, Any], *, changed: Iterable[str] = ()) -> list[str]:
    """Bring a run that is freshly made to a captured state.

    Args:
        job: The run.
        state: What `capture` gave.
        changed: Names of settings that differ from those of the state.

    Returns:
        What keeps it from going on exactly as it would have, as lines to show.

    Raises:
        ValueError: If the state does not fit the run.
    """
    task, run, processes = job.task, state['run'], job.processes
    notes = []
    if run['format'] != FORMAT:
        raise ValueError(
            f'the checkpoint has format {run["format"]}, expected {FORMAT}; resume it with the version that wrote it.')
    try:
        task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
        if task.has_ema():
            task.load_checkpoint_state(
                state.get('state_dict_ema', state['state_dict']), state.get('task_state_ema'), ema=True)
        fresh = [dict(group) for group in job.optimizer.param_groups]
        job.optimizer.load_state_dict(state['optimizer'])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f'the checkpoint does not fit the run: {str(error)[:200]}') from None
    if changed:
        for group, asked in zip(job.optimizer.param_groups, fresh, strict=True):
            group.update({name: asked[name] for name in HYPERPARAMETERS if name in asked})
    if job.updates.scaler is not None and 'amp_scaler' in state:
        job.updates.scaler.load_state_dict(state['amp_scaler'])
    progress = job.progress
    progress.epoch, progress.update, progress.rows = run['epoch'], run['update'], list(run['rows'])
    progress.activations = dict(run['activations'])
    if job.scheduler is not None:  # a function of how far the run is
        job.scheduler.step_update(progress.update)
        job.scheduler.step(progress.epoch)
    if len(run['ranks']) != processes.world_size:
        notes.append(
            f'number of processes: {len(run["ranks"])} before, {processes.world_size} now; the images are the same, '
            'random numbers are not')
        restore_sums(progress, run['ranks'], processes)
    else:
        restore_rank(job, run['ranks'][processes.rank])
    versions = library_versions()
    differing = [f'{name} {old} -> {versions.get(name)}' for name, old in run['versions'].items()
                 if versions.get(name) != old]
    if differing:
        notes.append(f'versions have changed, results may differ in the last digits: {", ".join(differing)}')
    return notes


HYPERPARAMETERS = ('lr', 'initial_lr', 'weight_decay', 'momentum', 'nesterov', 'betas', 'eps')


def restore_rank(job: Any, rank: Mapping[str, Any]) -> None:
    """The part of a state that is each process's own."""
    device, progress, task = job.processes.device, job.progress, job.task
    set_random_state(rank['random'], device)
    attack: Any = getattr(task, 'attack', None)
    if hasattr(attack, 'load_state_dict'):
        attack.load_state_dict(rank['attack'])
    progress.loss, progress.correct = rank['loss'].to(device), rank['correct'].to(device)
    progress.images, progress.seconds, progress.waited = rank['images'], rank['seconds'], rank['waited']
    for module, values in ((task.get_trainable_module(), rank['buffers']),
                           (task.get_trainable_module(ema=True), rank['buffers_ema'])):
        own = {} if module is None else dict(unwrap_model(module).named_buffers())
        for name, value in values.items():
            own[name].copy_(value)


def restore_sums(progress: Progress, ranks: list[Mapping[str, Any]], processes: Any) -> None:
    """The sums of the epoch so far, of another number of processes: all of them in the first one."""
    progress.seconds, progress.waited = ranks[0]['seconds'], ranks[0]['waited']
    if processes.is_primary:
        progress.loss = sum(rank['loss'] for rank in ranks).to(processes.device)
        progress.correct = sum(rank['correct'] for rank in ranks).to(processes.device)
        progress.images = sum(rank['images'] for rank in ranks)


def buffers(module: nn.Module | None) -> dict[str, torch.Tensor]:
    """Copies of a model's buffers."""
    return {} if module is None else {
        name: value.detach().cpu().clone() for name, value in unwrap_model(module).named_buffers()}


def attack_state(task: Any) -> dict[str, Any]:
    """Where an attack's random numbers stand."""
    attack: Any = getattr(task, 'attack', None)
    return attack.state_dict() if hasattr(attack, 'state_dict') else {}


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random number generator, as tensors and plain values."""
    name, keys, place, has_normal, normal = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        'python': random.getstate(), 'torch': torch.get_rng_state(),
        'numpy': [name, torch.from_numpy(keys.astype(np.int64)), place, has_normal, normal],
        'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Go on from a `random_state`."""
    version, numbers, normal = state['python']
    random.setstate((version, tuple(numbers), normal))
    torch.set_rng_state(state['torch'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if state['cuda'] is not None and device.type == 'cuda':
        torch.cuda.set_rng_state(state['cuda'], device)


def data_identity(job: Any) -> dict[str, Any]:
    """What the order of images is a function of, beside the settings."""
    synthetic = job.batches.synthetic or []
    return {
        'real': len(job.batches.real),
        'synthetic': [len(source) for source in (synthetic if isinstance(synthetic, list | tuple) else [synthetic])],
        'validation': len(job.val),
    }


def changed_settings(job: Any, state: Mapping[str, Any]) -> dict[str, str]:
    """The settings that differ from those of a checkpoint, each as 'old -> new'; only such that change the result."""
    old, new = state['args'], plain(job.config)
    changed = {
        name: f'{old.get(name, "not there")} -> {value}' for name, value in new.items()
        if name not in INCIDENTAL and old.get(name, 'not there') != value}
    kinds = [str(settings.get('device')).split(':')[0] for settings in (old, new)]
    if kinds[0] != kinds[1]:
        changed['device'] = ' -> '.join(kinds)
    for name, count in data_identity(job).items():
        if state['run']['data'][name] != count:
            changed[f'{name} images'] = f'{state["run"]["data"][name]} -> {count}'
    return changed


def write_summary(rows: list[dict[str, Any]], path: Path) -> None:
    """Write summary.csv as timm's `update_summary` does, but whole: no row is lost or there twice."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
