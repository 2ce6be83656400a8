"""One update of the weights, and the stream of batches that updates take."""
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import Tensor

from timm_paf.data import Batch, MixedBatches
from timm_paf.engine.config import TrainConfig
from timm_paf.engine.distributed import Processes
from timm_paf.engine.optim import WeightAverage
from timm_paf.tasks import AdversarialTrainingTask

__all__ = ['Updates', 'batches_from']


def batches_from(batches: MixedBatches, update: int, count: int) -> Iterator[Batch]:
    """The batches of `count` updates from one on; the passes over the data follow each other without a gap."""
    while count > 0:
        number, step = divmod(update, len(batches))
        taken = min(count, len(batches) - step)
        yield from itertools.islice(batches.epoch(number, step), taken)
        update, count = update + taken, count - taken


class Updates:
    """Updates of a task's model: attack and loss forward, backward, clipping, optimizer, schedule, average.

    A batch is one update. Each process takes its share in `grad_accum_steps` pieces; the gradient is that of the mean
    loss over the images of all pieces and processes, also where these are not of one size.

    Args:
        config: The settings.
        task: Computes the loss of a batch.
        optimizer: Its optimizer.
        scheduler: Its schedule; None for none.
        average: Its average; None for none.
        processes: Those of the run.
    """

    def __init__(
            self,
            config: TrainConfig,
            *,
            task: AdversarialTrainingTask,
            optimizer: torch.optim.Optimizer,
            scheduler: Any,
            average: WeightAverage | None,
            processes: Processes,
    ) -> None:
        self.config = config
        self.task = task
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.average = average
        self.processes = processes
        self.dtype = getattr(torch, config.amp_dtype) if config.amp else None
        # bfloat16 has float32's range, so only float16 needs its gradients scaled
        self.scaler = NativeScaler(device=processes.device.type) if self.dtype is torch.float16 else None

    def precision(self) -> Any:
        """The context that forward passes run in."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, self.dtype)

    def __call__(self, batch: Batch, update: int) -> tuple[Tensor, Tensor]:
        """Update the weights once.

        Args:
            batch: This process's share of the images.
            update: Number of the update in the run, from 0.

        Returns:
            The sum of this process's images' losses, and how many of them are classified correctly as they were trained
            on; both on the device, so that nothing waits for it.
        """
        config, task = self.config, self.task
        task.begin_update(update)
        self.optimizer.zero_grad(set_to_none=True)
        losses, correct = [], []
        pieces = self._pieces(batch)
        for number, (x, y, target) in enumerate(pieces, 1):
            last = number == len(pieces)
            with contextlib.nullcontext() if last else task.no_sync():
                with self.precision():
                    result = task(x, target)
                # processes' gradients are averaged, pieces' are added up
                share = len(x) * self.processes.world_size / batch.total
                self._backward(result['loss'] if share == 1 else result['loss'] * share, step=last)
            losses.append(result['loss'].detach() * len(x))
            correct.append((result['output'].detach().argmax(1) == y).sum())
        if self.average is not None:
            self.average.update(update)
        if self.scheduler is not None:
            self.scheduler.step_update(update + 1)
        if config.synchronize_step and self.processes.device.type == 'cuda':
            torch.cuda.synchronize()
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _pieces(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        x = batch.x.contiguous(memory_format=torch.channels_last) if self.config.channels_last else batch.x
        if self.config.grad_accum_steps == 1:
            return [(x, batch.y, batch.target)]
        return list(zip(*(t.chunk(self.config.grad_accum_steps) for t in (x, batch.y, batch.target)), strict=True))

    def _backward(self, loss: Tensor, *, step: bool) -> None:
        config = self.config
        agc = config.clip_mode == 'agc'  # timm leaves the classifier out there
        clipped = None
        if config.clip_grad is not None:
            # beta has a clip of its own: its penalty's gradient, 10, would else leave little of all others
            own = {id(beta) for beta in self.task.betas if config.beta_grad_clip is not None}
            clipped = [p for p in self.task.get_clip_parameters(exclude_head=agc) if id(p) not in own]
        if self.scaler is not None:
            self.scaler(
                loss, self.optimizer, clip_grad=config.clip_grad, clip_mode=config.clip_mode, parameters=clipped,
                need_update=step)
            return
        loss.backward()
        if step:
            if clipped is not None:
                dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
            self.optimizer.step()
