"""Runs of adv_train.py as benchmarks drive them: its settings for digits, its batches, and the digits in colour."""
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import adv_train
import torch
from _plain_loop import EPS, STEP_SIZE, STEPS
from torch import nn
from torch.nn import functional

from timm_paf.data import Batch, digits_splits, save_archive
from timm_paf.engine.step import batches_from

__all__ = ['WAYS', 'bare_module', 'colour_archives', 'endless', 'flags_of', 'job_of', 'trained']

WAYS = ('eager', 'compiled')


def job_of(
        model: str, batch_size: int, device: str, flags: Sequence[str] = (), *, seed: int = 0) -> adv_train.Run:
    """A run of the recipe with the settings of the digits, and further flags."""
    job = adv_train.prepare([
        '--model', model, '--batch-size', str(batch_size), '--device', device, '--attack-steps', str(STEPS), '--eps',
        str(EPS), '--attack-step-size', str(STEP_SIZE), '--seed', str(seed), *flags])
    assert job is not None
    job.task.train()
    return job


def flags_of(precision: str, way: str, backend: str) -> list[str]:
    """The recipe's flags for a precision and a way."""
    half = {'bf16': ['--amp', '--amp-dtype', 'bfloat16'], 'fp16': ['--amp', '--amp-dtype', 'float16']}
    return [*half.get(precision, []), *(['--torchcompile', backend] if way == 'compiled' else [])]


def colour_archives(folder: Path, size: int) -> list[str]:
    """Write digits as colour images (3, size, size); returns the recipe's flags to train on them."""
    splits = digits_splits()
    for name, split in (('train', splits.train), ('test', splits.test)):
        images = functional.interpolate(split.images, size=(size, size), mode='bilinear').expand(-1, 3, -1, -1)
        save_archive(folder / f'{name}.npz', dataclasses.replace(
            split, images=(255 * images).round().to(torch.uint8)))
    return [
        '--dataset', str(folder / 'train.npz'), '--test-data', str(folder / 'test.npz'), '--val-size', '100',
        '--num-classes', '10', '--synthetic-fraction', '0', '--crop-padding', str(size // 8), '--hflip']


def endless(job: adv_train.Run) -> Iterator[Batch]:
    """The recipe's batches; making them is part of what is timed."""
    update = 0
    while True:
        for batch in batches_from(job.batches, update, len(job.batches)):
            update += 1
            yield batch


def bare_module(job: adv_train.Run) -> nn.Module:
    """The network of a run, without what compiles it."""
    module = job.task.trainable_module
    return getattr(module, '_orig_mod', module)


def trained(job: adv_train.Run, update: Callable[[Batch, int], Any]) -> float:
    """Make all updates of a run; returns images/s, those of the first update left out."""
    count, stream, started = job.epochs * job.updates_per_epoch, endless(job), time.perf_counter()
    for number in range(count):
        update(next(stream), number)
        if number in (0, count - 1) and job.processes.device.type == 'cuda':
            torch.cuda.synchronize()
        if number == 0:
            started = time.perf_counter()
    return (count - 1) * job.config.batch_size / (time.perf_counter() - started) if count > 1 else math.nan
