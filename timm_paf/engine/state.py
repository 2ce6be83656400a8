"""Training state in a checkpoint, for exact resume."""
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf._versions import library_versions
from timm_paf.data import LabelledImages, MixedBatches
from timm_paf.engine.config import INCIDENTAL, TrainConfig
from timm_paf.engine.step import TrainStep

__all__ = ['Progress', 'data_sizes', 'load_run_state', 'run_state']

FORMAT = 1  # of the training state
HYPERPARAMETERS = ('lr', 'initial_lr', 'weight_decay', 'momentum', 'nesterov', 'betas', 'eps')


@dataclasses.dataclass
class Progress:
    """Position in a run; the sums belong to the epoch in progress.

    Args:
        loss: Sum of the losses of this process's images, on its device.
        correct: Number of them classified correctly, int64.
        bad: The first update with a loss that is not finite, -1 for none; on the device.
        epoch: Number of epochs that are finished, validated and recorded.
        update: Number of updates done.
        images: Number of images.
        seconds: Duration.
        waited: Seconds of it spent waiting for data.
        rows: Summary, one row per epoch.
        activations: `activation_summary` after the last update of the epoch; a resume has no gradients to recompute it.
    """
    loss: Tensor
    correct: Tensor
    bad: Tensor
    epoch: int = 0
    update: int = 0
    images: int = 0
    seconds: float = 0.
    waited: float = 0.
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    activations: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def start(cls, device: torch.device) -> 'Progress':
        """Progress of a run that has not begun."""
        wide = torch.float32 if device.type == 'mps' else torch.float64  # MPS has no float64
        return cls(
            torch.zeros((), dtype=wide, device=device), torch.zeros((), dtype=torch.int64, device=device),
            torch.full((), -1, device=device))

    def record(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Add an update: sum of losses and number of correct images, tensors on the device, and number of images."""
        self.bad = torch.where((self.bad < 0) & ~torch.isfinite(loss), self.update, self.bad)
        self.loss += loss
        self.correct += correct
        self.images += images
        self.update += 1

    def means(self, processes: Processes) -> dict[str, float]:
        """Means over the images of all processes: loss, accuracy under attack in %, images/s, waiting for data in %."""
        sums = [self.loss, self.correct.to(self.loss), torch.full_like(self.loss, self.images)]
        loss, correct, images = processes.all_reduce_sum(torch.stack(sums)).tolist()
        return {
            'loss': loss / images, 'robust': 100 * correct / images, 'images_per_second': images / self.seconds,
            'data_wait': 100 * self.waited / self.seconds}

    def next_epoch(self) -> None:
        """Count a finished epoch and clear the sums."""
        self.epoch += 1
        self.loss, self.correct = torch.zeros_like(self.loss), torch.zeros_like(self.correct)
        self.bad = torch.full_like(self.bad, -1)
        self.images, self.seconds, self.waited, self.activations = 0, 0., 0., {}


def run_state(step: TrainStep, progress: Progress, *, metric: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint; every process has to call it, and all but process 0 get an empty one.

    Args:
        step: Holds settings, task, optimizer and gradient scaler.
        progress: Position in the run.
        metric: Column of the summary that ranks epochs.
        sizes: Result of `data_sizes`.
    """
    config, task, rows = step.config, step.task, progress.rows
    ranks = step.processes.gather_object(rank_state(step, progress))
    if not step.processes.is_primary:
        return {}
    value = rows[-1].get(metric) if rows else None
    return {
        'epoch': progress.epoch - 1,  # the last finished one, as in timm
        'arch': config.model,
        'args': config.to_dict(),
        'optimizer': step.optimizer.state_dict(),
        'version': 2,
        **task.get_checkpoint_state(),
        **task.get_checkpoint_state(ema=True),
        **({} if value is None else {'metric': value}),
        **({} if step.scaler is None else {'amp_scaler': step.scaler.state_dict()}),
        'run': {
            'format': FORMAT, 'epoch': progress.epoch, 'update': progress.update, 'rows': list(rows), 'ranks': ranks,
            'activations': progress.activations, 'data': dict(sizes), 'versions': library_versions(),
        },
    }


def load_run_state(
        state: Mapping[str, Any], step: TrainStep, progress: Progress, *, sizes: Mapping[str, Any]) -> list[str]:
    """Load a `run_state`; returns lines about what may keep the run from continuing exactly.

    Raises:
        ValueError: If settings or data differ and `resume_changed` is not set, or the state does not fit.
    """
    run, config, task, optimizer = state['run'], step.config, step.task, step.optimizer
    changed = changed_settings(config, sizes, state)
    listed = '; '.join(f'{name}: {text}' for name, text in changed.items())
    if changed and not config.resume_changed:
        raise ValueError(f'the run was started with other settings: {listed}. Give it those, or --resume-changed.')
    if run['format'] != FORMAT:
        raise ValueError(
            f'the checkpoint has format {run["format"]}, expected {FORMAT}; resume it with the version that wrote it.')
    asked = [{name: group[name] for name in HYPERPARAMETERS if name in group} for group in optimizer.param_groups]
    try:
        task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
        if task.has_ema():
            task.load_checkpoint_state(
                state.get('state_dict_ema', state['state_dict']), state.get('task_state_ema'), ema=True)
        optimizer.load_state_dict(state['optimizer'])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f'the checkpoint does not fit the run: {str(error)[:200]}') from None
    if changed:
        for group, values in zip(optimizer.param_groups, asked, strict=True):
            group.update(values)
    if step.scaler is not None and 'amp_scaler' in state:
        step.scaler.load_state_dict(state['amp_scaler'])
    progress.epoch, progress.update, progress.rows = run['epoch'], run['update'], list(run['rows'])
    progress.activations = dict(run['activations'])
    if step.schedule is not None:
        step.schedule.step_update(progress.update)
        step.schedule.step(progress.epoch)
    load_rank_state(run['ranks'], step, progress)
    notes = [f'changed settings: {listed}'] if changed else []
    if len(run['ranks']) != step.processes.world_size:
        notes.append(
            f'number of processes: {len(run["ranks"])} before, {step.processes.world_size} now; the images are the '
            f'same, random numbers are not')
    versions = library_versions()
    differing = [
        f'{name} {old} -> {versions.get(name)}' for name, old in run['versions'].items() if versions.get(name) != old]
    if differing:
        notes.append(f'versions have changed, results may differ in the last digits: {", ".join(differing)}')
    return notes


def rank_state(step: TrainStep, progress: Progress) -> dict[str, Any]:
    """The part of the state that differs between processes."""
    task, attack, processes = step.task, cast(Any, step.task.attack), step.processes
    several = processes.is_distributed  # BatchNorm's running statistics are local to each process
    return {
        'random': random_state(processes.device),
        'attack': attack.state_dict() if hasattr(attack, 'state_dict') else {},
        'loss': progress.loss.cpu(), 'correct': progress.correct.cpu(), 'images': progress.images,
        'seconds': progress.seconds, 'waited': progress.waited,
        'buffers': buffers(task.get_trainable_module()) if several else {},
        'buffers_ema': buffers(task.get_trainable_module(ema=True)) if several else {},
    }


def load_rank_state(ranks: Sequence[Mapping[str, Any]], step: TrainStep, progress: Progress) -> None:
    """Load the state of each process; with another number of processes only the sums, all into the first one."""
    task, attack, processes = step.task, cast(Any, step.task.attack), step.processes
    device = processes.device
    if len(ranks) != processes.world_size:
        progress.seconds, progress.waited = ranks[0]['seconds'], ranks[0]['waited']
        if processes.is_primary:
            progress.loss = torch.stack([rank['loss'] for rank in ranks]).sum().to(device)
            progress.correct = torch.stack([rank['correct'] for rank in ranks]).sum().to(device)
            progress.images = sum(rank['images'] for rank in ranks)
        return
    rank = ranks[processes.rank]
    set_random_state(rank['random'], device)
    if hasattr(attack, 'load_state_dict'):
        attack.load_state_dict(rank['attack'])
    progress.loss, progress.correct = (rank[name].to(device).clone() for name in ('loss', 'correct'))
    progress.images, progress.seconds, progress.waited = rank['images'], rank['seconds'], rank['waited']
    for module, values in ((task.get_trainable_module(), rank['buffers']),
                           (task.get_trainable_module(ema=True), rank['buffers_ema'])):
        own = {} if module is None else dict(unwrap_model(module).named_buffers())
        for name, value in values.items():
            own[name].copy_(value)


def buffers(module: nn.Module | None) -> dict[str, Tensor]:
    """Copies of a model's buffers."""
    return {} if module is None else {
        name: value.detach().cpu().clone() for name, value in unwrap_model(module).named_buffers()}


def random_state(device: torch.device) -> dict[str, Any]:
    """State of every global random number generator, as tensors and plain values."""
    name, keys, position, has_normal, normal = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        'python': random.getstate(), 'torch': torch.get_rng_state(),
        'numpy': [name, torch.from_numpy(keys.astype(np.int64)), position, has_normal, normal],
        'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Load a `random_state`."""
    version, numbers, normal = state['python']
    random.setstate((version, tuple(numbers), normal))
    torch.set_rng_state(state['torch'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if state['cuda'] is not None and device.type == 'cuda':
        torch.cuda.set_rng_state(state['cuda'], device)


def data_sizes(batches: MixedBatches, val: LabelledImages) -> dict[str, Any]:
    """Numbers of images; the order of training images depends on them."""
    synthetic = batches.synthetic or []
    return {
        'real': len(batches.real),
        'synthetic': [len(source) for source in (synthetic if isinstance(synthetic, list | tuple) else [synthetic])],
        'validation': len(val),
    }


def changed_settings(config: TrainConfig, sizes: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, str]:
    """Settings and sizes that differ from a checkpoint's and change the result, each as 'old -> new'."""
    old, new = state['args'], config.to_dict()
    changed = {
        name: f'{old.get(name, "not there")} -> {value}' for name, value in new.items()
        if name not in INCIDENTAL and old.get(name, 'not there') != value}
    kinds = [str(settings.get('device')).split(':')[0] for settings in (old, new)]
    if kinds[0] != kinds[1]:
        changed['device'] = ' -> '.join(kinds)
    for name, count in sizes.items():
        if state['run']['data'][name] != count:
            changed[f'{name} images'] = f'{state["run"]["data"][name]} -> {count}'
    return changed
