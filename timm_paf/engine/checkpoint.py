"""Training state in a checkpoint, for exact resume."""
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor

from timm_paf._distributed import Processes
from timm_paf._versions import library_versions
from timm_paf.data import ImageSource
from timm_paf.engine.classes import names_difference
from timm_paf.engine.normalization import statistics
from timm_paf.engine.train_config import INCIDENTAL, TrainConfig

if TYPE_CHECKING:
    from timm_paf.engine.components import Run

__all__ = ['Progress', 'load_run_state', 'run_state']

FORMAT = 1  # of the training state
BEFORE = {'alpha_grad_clip': None}  # settings of runs from before there was a flag, other than its default
HYPERPARAMETERS = ('lr', 'initial_lr', 'lr_scale', 'weight_decay', 'momentum', 'nesterov', 'betas', 'eps')


@dataclasses.dataclass
class Progress:
    """Position in a run. Loss, number of images, seconds and waiting are sums over the epoch in progress."""
    loss: Tensor  # of this process's images, on its device
    correct: Tensor  # number of them classified correctly, int64
    bad: Tensor  # the first update with a loss that is not finite, -1 for none; on the device
    epoch: int = 0  # number of epochs that are finished, validated and recorded
    update: int = 0  # number of updates done
    images: int = 0
    seconds: float = 0.
    waited: float = 0.  # for data
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of summary.csv
    # `activation_summary` after the last update of the epoch; a resumed run has no gradients to recompute it from
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


def run_state(run: 'Run') -> dict[str, Any]:
    """The content of a checkpoint; every process has to call it, and all but process 0 get an empty one."""
    config, task, progress = run.config, run.task, run.progress
    ranks = run.processes.all_gather_object(rank_state(run))
    if not run.is_primary:
        return {}
    value = progress.rows[-1].get(run.files.metric) if progress.rows else None
    return {
        'epoch': progress.epoch - 1,  # the last finished one, as in timm
        'arch': config.model,
        'args': config.to_dict(),
        'normalization': None if (found := statistics(unwrap_model(run.model))) is None else dict(
            zip(('mean', 'std'), found, strict=True)),
        'optimizer': run.optimizer.state_dict(),
        'version': 2,
        **task.get_checkpoint_state(),
        **task.get_checkpoint_state(ema=True),
        **({} if value is None else {'metric': value}),
        **({} if run.step.scaler is None else {'amp_scaler': run.step.scaler.state_dict()}),
        'run': {
            'format': FORMAT, 'epoch': progress.epoch, 'update': progress.update, 'rows': list(progress.rows),
            'ranks': ranks, 'activations': progress.activations, 'data': data_sizes(run),
            'updates_per_epoch': run.updates_per_epoch,
            'versions': library_versions(),
        },
    }


def load_run_state(run: 'Run', state: Mapping[str, Any]) -> list[str]:
    """Load a `run_state`; returns lines about what may keep the run from continuing exactly.

    Raises:
        ValueError: If settings or data differ and `resume_changed` is not set, or the state does not fit.
    """
    stored, config, task, optimizer, progress = state['run'], run.config, run.task, run.optimizer, run.progress
    changed = changed_settings(run, state)
    if changed and not config.resume_changed:
        raise ValueError(f'the run was started with other settings: {changed}. Use those, or add --resume-changed.')
    if stored['format'] != FORMAT:
        raise ValueError(
            f'the checkpoint has format {stored["format"]}, expected {FORMAT}; resume it with the version that wrote '
            f'it.')
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
    if run.step.scaler is not None and 'amp_scaler' in state:
        run.step.scaler.load_state_dict(state['amp_scaler'])
    progress.epoch, progress.update, progress.rows = stored['epoch'], stored['update'], list(stored['rows'])
    progress.activations = dict(stored['activations'])
    if run.schedule is not None:
        run.schedule.step_update(progress.update)
        run.schedule.step(progress.epoch)
    load_rank_state(run, stored['ranks'])
    notes = [f'changed settings: {changed}'] if changed else []
    before, now, versions = len(stored['ranks']), run.processes.world_size, library_versions()
    if before != now:
        notes.append(
            f'number of processes: {before} before, {now} now; the images are the same, random numbers are not')
    differing = [
        f'{name} {old} -> {versions.get(name)}' for name, old in stored['versions'].items()
        if versions.get(name) != old]
    if differing:
        notes.append(f'versions have changed, results may differ in the last digits: {", ".join(differing)}')
    return notes


def rank_state(run: 'Run') -> dict[str, Any]:
    """The part of the state that differs between processes."""
    task, attack, progress = run.task, cast(Any, run.task.attack), run.progress
    modules = [task.get_trainable_module(ema=ema) if run.processes.is_distributed else None for ema in (False, True)]
    # BatchNorm's running statistics are local to each process
    buffers, buffers_ema = (
        {name: value.detach().cpu().clone() for name, value in unwrap_model(module).named_buffers()}
        if module is not None else {} for module in modules)
    return {
        'random': random_state(run.processes.device),
        'attack': attack.state_dict() if hasattr(attack, 'state_dict') else {},
        'loss': progress.loss.cpu(), 'correct': progress.correct.cpu(), 'images': progress.images,
        'seconds': progress.seconds, 'waited': progress.waited,
        'buffers': buffers, 'buffers_ema': buffers_ema,
    }


def load_rank_state(run: 'Run', ranks: Sequence[Mapping[str, Any]]) -> None:
    """Load the state of each process; with another number of processes only the sums, all into the first one."""
    task, attack, progress, device = run.task, cast(Any, run.task.attack), run.progress, run.processes.device
    same = len(ranks) == run.processes.world_size
    rank = ranks[run.processes.rank if same else 0]
    progress.seconds, progress.waited = rank['seconds'], rank['waited']
    if same or run.is_primary:
        summed = [rank] if same else ranks
        progress.loss, progress.correct = (
            torch.stack([other[name] for other in summed]).sum().to(device) for name in ('loss', 'correct'))
        progress.images = sum(other['images'] for other in summed)
    if not same:
        return
    set_random_state(rank['random'], device)
    if hasattr(attack, 'load_state_dict'):
        attack.load_state_dict(rank['attack'])
    for ema, values in ((False, rank['buffers']), (True, rank['buffers_ema'])):
        module = task.get_trainable_module(ema=ema)
        own = {} if module is None else dict(unwrap_model(module).named_buffers())
        for name, value in values.items():
            own[name].copy_(value)


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


def data_sizes(run: 'Run') -> dict[str, Any]:
    """Numbers of images; the order of training images depends on them."""
    synthetic = cast(Sequence[ImageSource], run.data.synthetic or ())
    return {
        'real': len(run.data.real), 'synthetic': [len(source) for source in synthetic], 'validation': len(run.val)}


def changed_settings(run: 'Run', state: Mapping[str, Any]) -> str:
    """Settings and sizes that differ from a checkpoint's and change the result, each as 'name: old -> new'.

    A setting that an older version did not have had its default, or the value in `BEFORE`.
    """
    old, new = ({**values, 'device': str(values.get('device')).split(':')[0]}  # another GPU has the same result
                for values in ({**TrainConfig().to_dict(), **BEFORE, **state['args']}, run.config.to_dict()))
    names = new.pop('class_names')
    changed = [
        f'{name}: {old[name]} -> {value}' for name, value in new.items()
        if (name not in INCIDENTAL or name == 'device') and old[name] != value]
    if difference := names_difference(old['class_names'], names):
        changed.append(f'classes: {difference}')
    changed += [
        f'{name} images: {state["run"]["data"][name]} -> {count}' for name, count in data_sizes(run).items()
        if state['run']['data'][name] != count]
    before = state['run']['updates_per_epoch']
    if before != run.updates_per_epoch and not changed:  # as another number of processes may leave out a last batch
        changed.append(f'updates per epoch: {before} -> {run.updates_per_epoch}; set --updates-per-epoch {before}')
    return '; '.join(changed)
