"""One epoch of a run: its updates, the looks at them, and the checkpoints in between."""
import time
from typing import Any

import torch
from torch import nn

from timm_paf import activation_summary, paf_parameters
from timm_paf.data import Prefetched
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.distributed import StopSignals, signal_name
from timm_paf.engine.progress import TrainingView, memory, time_estimate
from timm_paf.engine.state import capture
from timm_paf.engine.step import batches_from

__all__ = ['Epoch', 'save', 'shape_values', 'stop_here']


class Epoch:
    """The updates of the epoch in progress, from wherever it stands.

    Args:
        job: The run, as `adv_train.Run`.
        view: Where to show it.
        stop: Whether it is to end early.
        estimate: Say after the first updates how long the run will take.
    """

    def __init__(self, job: Any, view: TrainingView, stop: StopSignals, *, estimate: bool) -> None:
        self.job, self.view, self.stop, self.estimate = job, view, stop, estimate
        self.number = job.progress.epoch
        self.end = (self.number + 1) * job.updates_per_epoch
        self.warm: tuple[float, int] | None = None
        self.started = time.monotonic() - job.progress.seconds
        self.waited = job.progress.waited
        self.saved = time.monotonic()
        # the first update that gave no finite loss; on the device until it is looked at
        self.bad = torch.full((), -1, device=job.processes.device)

    def train(self) -> dict[str, float]:
        """Do the updates; returns means over the images of the epoch."""
        job, progress = self.job, self.job.progress
        job.task.train()
        with Prefetched(
            batches_from(job.batches, progress.update, self.end - progress.update), device=job.processes.device,
            threaded=job.config.prefetch,
        ) as batches:
            for batch in batches:
                loss, correct = job.updates(batch, progress.update)
                self.bad = torch.where((self.bad < 0) & ~torch.isfinite(loss), progress.update, self.bad)
                progress.loss += loss
                progress.correct += correct
                progress.images += len(batch)
                progress.update += 1
                if progress.update == self.end:
                    progress.activations = activation_summary(job.task.get_trainable_module())
                self.note_time(batches)
                self.look()
        sums = [progress.loss, progress.correct.to(progress.loss), torch.full_like(progress.loss, progress.images)]
        loss, correct, images = job.processes.all_reduce_sum(torch.stack(sums)).tolist()
        return {
            'loss': loss / images, 'robust': 100 * correct / images, 'images_per_second': images / progress.seconds,
            'data_wait': 100 * progress.waited / progress.seconds}

    def note_time(self, batches: Prefetched) -> None:
        """Time of the epoch so far, also that of the process that began it."""
        progress = self.job.progress
        progress.seconds = time.monotonic() - self.started
        progress.waited = self.waited + batches.waited

    def look(self) -> None:
        """Once in a while, and when there is a reason: read sums back, save, or stop."""
        job, progress = self.job, self.job.progress
        minutes = job.config.checkpoint_minutes
        due = 0 < minutes <= (time.monotonic() - self.saved) / 60
        step = progress.update - self.number * job.updates_per_epoch - 1
        regular = step % job.config.log_interval == 0 or progress.update == self.end
        # several processes have to do the same, so they ask each other, at regular looks only
        if not regular and (job.processes.is_distributed or not (due or self.stop.received)):
            self.view.step(self.number, step, loss=None, robust=None, images_per_second=None, shape={})
            return
        stopped, due_anywhere, bad = job.processes.all_reduce_max(self.stop.received, int(due), int(self.bad))
        if bad >= 0:
            raise RunFailed(
                f'the loss became NaN or infinite at step {bad % job.updates_per_epoch} of epoch {self.number + 1}; '
                f'the checkpoints in {job.folder} are from before it. Try a smaller --lr, or --warmup-epochs.')
        self.show(step)
        if stopped:
            self.stop.received = stopped
            raise RunStopped
        if due_anywhere and progress.update < self.end:
            save(job, epoch_ended=False)
            self.saved = time.monotonic()

    def show(self, step: int) -> None:
        """The means of the epoch so far, of this process."""
        job, progress = self.job, self.job.progress
        self.view.step(
            self.number, step, loss=float(progress.loss) / progress.images,
            robust=100 * float(progress.correct) / progress.images,
            images_per_second=progress.images / progress.seconds,
            shape=shape_values(job.task.get_trainable_module()), data_wait=100 * progress.waited / progress.seconds,
            memory=memory(job.processes.device))
        if self.warm is None:  # the first update also warms up; the estimate is made from the next ones
            self.warm = time.monotonic(), progress.images
        elif self.estimate:
            since, images = self.warm
            self.view.say(time_estimate(job, (time.monotonic() - since) / (progress.images - images)))
            self.estimate = False


def save(job: Any, *, epoch_ended: bool) -> None:
    """Write a checkpoint; every process takes part."""
    state = capture(job)
    if state is None:
        return
    try:
        job.saver.save(state, job.progress.rows, epoch_ended=epoch_ended)
    except OSError as error:
        raise RunFailed(
            f'the checkpoint of update {job.progress.update} cannot be written ({error}); those before it are kept in '
            f'{job.folder}; go on with --resume auto.') from error


def stop_here(job: Any, stop: StopSignals) -> None:
    """Save and end."""
    save(job, epoch_ended=False)
    job.processes.all_reduce_max(0)  # none leaves before the checkpoint is written
    raise RunStopped(
        f'{signal_name(stop.received)} at update {job.progress.update}, in epoch {job.progress.epoch + 1} of '
        f'{job.epochs}; go on with the same command and --resume auto (it needs --experiment {job.folder.name}).'
        if job.processes.is_primary else '')


def shape_values(model: nn.Module) -> dict[str, float]:
    """Alpha and beta of a model by name; a parameter with one value per channel gives one entry each."""
    values: dict[str, float] = {}
    for name, parameter in paf_parameters(model).items():
        entries = parameter.detach().flatten().tolist()
        values.update({name: entries[0]} if len(entries) == 1 else {f'{name}[{i}]': v for i, v in enumerate(entries)})
    short = {name.rsplit('.', 1)[-1]: value for name, value in values.items()}
    return short if len(short) == len(values) else values
