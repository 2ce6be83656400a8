"""Validation between epochs, and what it selects."""
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_paf.attacks import CompiledModel
from timm_paf.engine.checkpoint import best_epoch
from timm_paf.engine.cli import RunStopped
from timm_paf.engine.compilation import compile_settings
from timm_paf.evaluation import accuracy_under_attack, clean_accuracy

__all__ = ['selection', 'validate']


def validate(job: Any, stop_asked: Callable[[], bool]) -> dict[str, float]:
    """Clean accuracy and accuracy under PGD on the validation split, in percent.

    Each process looks at its share of the images; the counts are added up as integers. If the weights are averaged,
    'clean' and 'robust' are the average's, and the raw weights' are named '…_raw'.

    Args:
        job: The run, as `adv_train.Run`.
        stop_asked: Asked between batches whether to leave it.

    Raises:
        RunStopped: If asked to stop.
    """
    processes, config = job.processes, job.config
    checked = {}
    for ema in (True, False) if config.model_ema else (False,):
        if processes.is_distributed and config.dist_bn != 'none':
            distribute_bn(job.task.get_trainable_module(ema=ema), processes.world_size, config.dist_bn == 'reduce')
        suffix = '_raw' if config.model_ema and not ema else ''
        counts = count(job, bare(job.task.get_eval_model(ema=ema)), stop_asked)
        for name, correct in zip(('clean', 'robust'), processes.all_reduce_sum(counts).tolist(), strict=True):
            checked[name + suffix] = 100 * correct / len(job.val)
    return checked


@torch.no_grad()
def count(job: Any, model: nn.Module, stop_asked: Callable[[], bool]) -> torch.Tensor:
    """How many images of this process's share are classified correctly, clean and attacked."""
    processes, config = job.processes, job.config
    share = processes.share(len(job.val))
    images, labels = job.val.images[share], job.val.labels[share]
    # one seed for all epochs, and one an image, so that both are compared under the same attack, whoever shares it
    compiled = compile_settings(config, min(config.eval_batch_size, max(1, len(images))))
    attack = config.validation_attack(config.seed + 1, compile=compiled)
    seeds = torch.arange(len(job.val))[share]
    if compiled is not None:
        model = CompiledModel(model, compile=compiled)

    def watched(*arguments: Any, **more: Any) -> torch.Tensor:
        if stop_asked() and not processes.is_distributed:  # several have to agree, at the end
            raise RunStopped
        return attack(*arguments, **more)

    if not len(images):
        return torch.zeros(2, dtype=torch.int64, device=job.processes.device)
    arguments = dict(batch_size=config.eval_batch_size, device=processes.device)
    with job.updates.precision():
        clean = clean_accuracy(model, images, labels, **arguments)
        robust = accuracy_under_attack(model, images, labels, attack=watched, seeds=seeds, **arguments)
    return torch.tensor([clean.correct, robust.correct], device=processes.device)


def bare(model: nn.Module) -> nn.Module:
    """A model without the wrappers of averages and processes; a compiled one stays compiled."""
    while isinstance(model, (DistributedDataParallel, ModelEmaV3)):
        model = model.module
    return model


def selection(job: Any) -> dict[str, Any]:
    """What was chosen on the validation split, and how far the last epoch is behind: robust overfitting.

    Returns:
        For 'ema' (if there is an average) and 'raw' weights the 'best' and the 'last' epoch (from 0) with their
        accuracies in percent, and the 'gap' between these.
    """
    rows, metric = job.progress.rows, job.config.eval_metric
    columns = {'raw': f'eval_{metric}'}
    if job.config.model_ema:
        columns = {'ema': f'eval_{metric}', 'raw': f'eval_{metric}_raw'}
    result: dict[str, Any] = {'metric': metric, 'selected': next(iter(columns))}
    for weights, column in columns.items():
        best = best_epoch(rows, column) or 0
        values = {int(row['epoch']): row[column] for row in rows if row.get(column) is not None}
        last = max(values)
        result[weights] = {
            'best': {'epoch': best, metric: values[best]}, 'last': {'epoch': last, metric: values[last]},
            'gap': values[best] - values[last]}
    return result
