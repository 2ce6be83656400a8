"""Validation between epochs, and the choice of the best epoch."""
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from timm_paf._distributed import Processes
from timm_paf.attacks import CompiledModel
from timm_paf.data import EvaluationImages
from timm_paf.engine.checkpoint_files import best_epoch
from timm_paf.engine.cli import RunStopped
from timm_paf.engine.execution import compile_settings
from timm_paf.engine.train_config import TrainConfig
from timm_paf.evaluation import accuracy_under_attack, clean_accuracy
from timm_paf.tasks import AdversarialTrainingTask

__all__ = ['selection', 'selection_lines', 'validate']


def validate(
        task: AdversarialTrainingTask, data: EvaluationImages, config: TrainConfig, processes: Processes, *,
        precision: Callable[[], AbstractContextManager], stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Clean accuracy and accuracy under PGD, in percent.

    Each process takes its share of the images; the counts are added as integers. If the run averages its weights,
    'clean' and 'robust' belong to the average, and 'clean_raw' and 'robust_raw' to the raw weights.

    Args:
        task: Holds the weights.
        data: Validation images.
        config: Settings.
        processes: Processes of the run.
        precision: Gives the context of forward passes.
        stop_requested: Called between batches in a run with one process; True raises RunStopped.
    """
    found = {}
    for ema in (True, False) if config.model_ema else (False,):
        if processes.is_distributed and config.dist_bn != 'none':
            distribute_bn(task.get_trainable_module(ema=ema), processes.world_size, config.dist_bn == 'reduce')
        model: nn.Module | None = task.get_eval_model(ema=ema)
        while isinstance(model, (DistributedDataParallel, ModelEmaV3)):  # a compiled model stays compiled
            model = model.module
        assert model is not None
        counts = _count(model, data, config, processes, precision, stop_requested)
        suffix = '_raw' if config.model_ema and not ema else ''
        for name, correct in zip(('clean', 'robust'), processes.all_reduce_sum(counts).tolist(), strict=True):
            found[name + suffix] = 100 * correct / len(data)
    return found


@torch.no_grad()
def _count(
        model: nn.Module, data: EvaluationImages, config: TrainConfig, processes: Processes,
        precision: Callable[[], AbstractContextManager], stop_requested: Callable[[], bool],
) -> Tensor:
    """Number of images of this process's share that are classified correctly, clean and under attack."""
    share = processes.share(len(data))
    images, labels = data.images[share], data.labels[share]
    if not len(images):
        return torch.zeros(2, dtype=torch.int64, device=processes.device)
    # the same seeds in all epochs, one per image, so that epochs and numbers of processes compare under one attack
    compiled = compile_settings(config, min(config.eval_batch_size, len(images)))
    attack = config.validation_attack(config.seed + 1, compile=compiled)
    seeds = torch.arange(len(data))[share]
    if compiled is not None:
        model = CompiledModel(model, compile=compiled)

    def watched(*arguments: Any, **more: Any) -> Tensor:
        if not processes.is_distributed and stop_requested():  # several processes agree on it at the end
            raise RunStopped
        return attack(*arguments, **more)

    with precision():
        clean = clean_accuracy(model, images, labels, batch_size=config.eval_batch_size, device=processes.device)
        robust = accuracy_under_attack(
            model, images, labels, attack=watched, seeds=seeds, batch_size=config.eval_batch_size,
            device=processes.device)
    return torch.tensor([clean.correct, robust.correct], device=processes.device)


def selection(rows: Sequence[Mapping[str, Any]], *, metric: str, averaged: bool) -> dict[str, Any]:
    """The best epoch by 'robust' or 'clean' accuracy, and how far the last epoch is below it: robust overfitting.

    Returns:
        For 'ema' (if averaged) and 'raw' weights the 'best' and the 'last' epoch (from 0) with their accuracies in
        percent, and the 'gap' between them.
    """
    first = 'ema' if averaged else 'raw'
    columns = {first: f'eval_{metric}', **({'raw': f'eval_{metric}_raw'} if averaged else {})}
    result: dict[str, Any] = {'metric': metric, 'selected': first}
    for weights, column in columns.items():
        best = best_epoch(rows, column) or 0
        values = {int(row['epoch']): row[column] for row in rows if row.get(column) is not None}
        last = max(values)
        result[weights] = {
            'best': {'epoch': best, metric: values[best]}, 'last': {'epoch': last, metric: values[last]},
            'gap': values[best] - values[last]}
    return result


def selection_lines(found: Mapping[str, Any], measured: str) -> list[str]:
    """A line of a `selection` for averaged and for raw weights; `measured` names the metric, such as 'under PGD-10'."""
    words = {'ema': ', averaged weights', 'raw': ', raw weights' if 'ema' in found else ''}
    return [
        f'best on the validation split{words[weights]}: epoch {found[weights]["best"]["epoch"] + 1}, '
        f'{found[weights]["best"][found["metric"]]:.1f} % {measured}; ' + (
            'it is the last one' if found[weights]['best'] == found[weights]['last'] else
            f'the last epoch is {found[weights]["gap"]:.1f} points below') for weights in words if weights in found]
