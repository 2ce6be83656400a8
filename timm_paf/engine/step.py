"""One update of the weights, and the stream of batches for the updates of a run."""
import contextlib
import itertools
from collections.abc import Iterator

import torch
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import Tensor

from timm_paf._distributed import Processes
from timm_paf.data import Batch, MixedBatches
from timm_paf.engine.ema import EMA
from timm_paf.engine.schedule import Schedule
from timm_paf.engine.train_config import TrainConfig
from timm_paf.tasks import AdversarialTrainingTask

__all__ = ['TrainStep', 'batches_from', 'micro_batch_sizes']


def batches_from(batches: MixedBatches, update: int, count: int) -> Iterator[Batch]:
    """Batches for `count` updates from number `update` on; passes over the data follow each other without a gap."""
    while count > 0:
        number, step = divmod(update, len(batches))
        taken = min(count, len(batches) - step)
        yield from itertools.islice(batches.epoch(number, step), taken)
        update, count = update + taken, count - taken


def micro_batch_sizes(count: int, steps: int, whole: int) -> list[int]:
    """Sizes of the at most `steps` micro-batches of a batch of `count` images, of which whole batches have `whole`.

    None has one image, with which BatchNorm cannot train, unless the settings ask for it: as many steps as images.
    """
    size = -(-count // steps)
    if count > 1 and whole > steps and (size == 1 or count % size == 1):
        parts = min(steps, count // 2)  # their sizes differ by at most one
        return [count // parts + (number < count % parts) for number in range(parts)]
    return [min(size, count - first) for first in range(0, count, size)]


class TrainStep:
    """One update: attack and loss forward, backward, clipping, optimizer, average, schedule.

    Each process takes its share of a batch in `grad_accum_steps` micro-batches. The gradient is that of the mean loss
    over the images of all micro-batches and processes, even if their sizes differ.

    Without a schedule the learning rate is constant; `ema` is None if the weights are not averaged.
    """

    def __init__(
            self, config: TrainConfig, *, task: AdversarialTrainingTask, optimizer: torch.optim.Optimizer,
            schedule: Schedule | None, ema: EMA | None, processes: Processes,
    ) -> None:
        self.config, self.task, self.optimizer, self.schedule = config, task, optimizer, schedule
        self.ema, self.processes = ema, processes
        self.dtype: torch.dtype | None = getattr(torch, config.amp_dtype) if config.amp else None
        # bfloat16 has float32's range, so only float16 needs scaled gradients
        self.scaler = NativeScaler(device=processes.device.type) if self.dtype is torch.float16 else None

    def precision(self) -> contextlib.AbstractContextManager:
        """Context of forward passes: autocast with --amp."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, self.dtype)

    def __call__(self, batch: Batch, update: int) -> tuple[Tensor, Tensor]:
        """Update the weights once.

        Args:
            batch: This process's share of the images.
            update: Number of the update in the run, from 0.

        Returns:
            Sum of the losses of these images, and number of them classified correctly as trained on (under attack);
            both are tensors on the device, so that nothing waits for it.
        """
        config, task = self.config, self.task
        task.begin_update(update)
        self.optimizer.zero_grad(set_to_none=True)
        losses, correct = [], []
        micro_batches = self._micro_batches(batch)
        for number, (x, y, target) in enumerate(micro_batches, 1):
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else task.no_sync():
                with self.precision():
                    result = task(x, target)
                # gradients of processes are averaged, gradients of micro-batches are added
                share = len(x) * self.processes.world_size / batch.total
                self._backward(result['loss'] if share == 1 else result['loss'] * share, step=last)
            losses.append(result['loss'].detach() * len(x))
            correct.append((result['output'].detach().argmax(1) == y).sum())
        if self.ema is not None:
            self.ema.update(update)
        if self.schedule is not None:
            self.schedule.step_update(update + 1)
        if config.synchronize_step and self.processes.device.type == 'cuda':
            torch.cuda.synchronize()
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _micro_batches(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        x = batch.x.contiguous(memory_format=torch.channels_last) if self.config.channels_last else batch.x
        whole = -(-self.config.batch_size // self.processes.world_size)
        sizes = micro_batch_sizes(len(batch), self.config.grad_accum_steps, whole)
        return list(zip(*(t.split(sizes) for t in (x, batch.y, batch.target)), strict=True))

    def _backward(self, loss: Tensor, *, step: bool) -> None:
        config, clip, clipped = self.config, self.config.clip_grad, None
        if clip is not None:
            # these have their own clip: the gradient of beta's penalty, 10, would leave little of all others
            own = {id(parameter) for parameter, _ in self.task.clipped_parameters()}
            # timm excludes the classifier from agc
            parameters = self.task.get_clip_parameters(exclude_head=config.clip_mode == 'agc')
            clipped = [p for p in parameters if id(p) not in own]
        if self.scaler is not None:
            self.scaler(
                loss, self.optimizer, clip_grad=clip, clip_mode=config.clip_mode, parameters=clipped, need_update=step)
            return
        loss.backward()
        if step:
            if clipped is not None and clip is not None:
                dispatch_clip_grad(clipped, clip, mode=config.clip_mode)
            self.optimizer.step()
