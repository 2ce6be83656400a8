"""What a run would be: settings, sizes, and a few updates to estimate memory and time from."""
import time
from typing import Any

import torch
import yaml
from torch import nn

from timm_paf import paf_parameters
from timm_paf.engine.announce import announce
from timm_paf.engine.config import plain
from timm_paf.engine.progress import announcement, memory, time_estimate
from timm_paf.engine.step import batches_from

__all__ = ['dry_run']

WARM, MEASURED = 1, 3


def dry_run(job: Any) -> None:
    """Show a run without starting it; nothing is written.

    Args:
        job: The run, as `adv_train.Run`; its weights are not what they were afterwards.
    """
    config, batches, say = job.config, job.batches, job.say
    say(yaml.safe_dump(plain(config), sort_keys=False).rstrip())
    say('')
    announce(job.console, batches)
    say(announcement(job))
    for line in parameter_lines(job.task.get_trainable_module()):
        say(line)
    say(
        f'{job.updates_per_epoch * job.epochs:,} updates of {config.batch_size} images; a pass over the real images '
        f'has {len(batches)} updates of {batches.real_per_batch} real and {batches.synthetic_per_batch} synthetic '
        f'images; {len(job.val):,} images to validate on, {len(job.test):,} to test on')
    seconds, images = measure(job)
    say(time_estimate(job, seconds / images))
    say(f'memory: {memory(job.processes.device)}')


def parameter_lines(model: nn.Module) -> list[str]:
    """How many parameters a model has, and those of its activations."""
    pafs = paf_parameters(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines = [f'{trained:,} trained parameters, {sum(p.numel() for p in pafs.values()):,} parameters of activations']
    if 0 < len(pafs) <= 8:
        lines += [
            f'  {name}: {", ".join(f"{value:g}" for value in p.detach().flatten().tolist()[:4])}'
            f'{"" if p.requires_grad else " (fixed)"}' for name, p in pafs.items()]
    return lines


def measure(job: Any) -> tuple[float, int]:
    """Seconds and images of a few updates."""
    device = job.processes.device
    started, images = 0., 0
    job.task.train()
    for number, batch in enumerate(batches_from(job.batches, 0, WARM + MEASURED)):
        if number == WARM:
            synchronize(device)
            started = time.perf_counter()
        job.updates(batch, number)
        images += len(batch) if number >= WARM else 0
    synchronize(device)
    return time.perf_counter() - started, images


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
