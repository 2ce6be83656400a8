"""A rehearsal: what training and the final measurement need is tried on a few images before training."""
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from timm_paf._distributed import Processes
from timm_paf.attacks import PGD, check_images, eval_mode, rehearse_autoattack
from timm_paf.data import Batch, ImageSource, all_labels, to_unit_range
from timm_paf.data.arrays import label_distribution
from timm_paf.data.streamed import StreamedImages
from timm_paf.engine.checkpoint import random_state, set_random_state
from timm_paf.engine.model import make_task
from timm_paf.engine.optim import make_optimizer
from timm_paf.engine.shared_config import EvaluationConfig
from timm_paf.engine.step import TrainStep, micro_batch_sizes

if TYPE_CHECKING:
    from timm_paf.engine.components import Run

__all__ = ['rehearse_measurement', 'rehearse_run']


def rehearse_run(run: 'Run', *, training: bool = True) -> None:
    """Try an update, the attacks and the final measurement of a run on a few images.

    It takes a new copy of the network and restores the random numbers, so the run has the same result as without it.

    Args:
        run: The run, before its first update.
        training: Whether to try an update. A trainer with an own `train_step` may need a network of another form.

    Raises:
        ValueError: If something cannot work; the message says what, and what to do.
    """
    config, device = run.config, run.processes.device
    check_split(run.val, run.data.real, 'validation')
    if run.test is not None:
        check_split(run.test, run.data.real, 'test')
    state = random_state(device)
    try:
        model = run.fresh_model().to(device)
        check_outputs(model, readable(run), device)
        rehearse_measurement(model, run.val if run.test is None else run.test, config, device)
        if training:
            rehearse_update(run, model)
    finally:
        set_random_state(state, device)


def check_split(split: ImageSource, real: ImageSource, name: str) -> None:
    """Raise ValueError if images or labels of a split do not fit those of training."""
    if tuple(split.image_shape) != tuple(real.image_shape):
        raise ValueError(
            f'the {name} images have shape {tuple(split.image_shape)}, the training images {tuple(real.image_shape)} '
            f'(channels, height, width); give both the same.')
    labels = all_labels(split)
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if classes > real.num_classes:
        raise ValueError(
            f'the {name} images have labels up to {classes - 1}, but the training images have {real.num_classes} '
            f'classes; give test images of the same classes, or set --num-classes.')


def check_outputs(model: nn.Module, real: ImageSource, device: torch.device) -> None:
    """Raise ValueError if the model does not return one logit per class in eval mode."""
    with failures('the model', real):
        x, y = images_of(real, 2)
        classes = check_images(model, x, torch.zeros_like(y), device=device)
    if classes < real.num_classes:
        raise ValueError(
            f'the model returns {classes} logits for {real.num_classes} classes; give it one output per class.')


def rehearse_measurement(model: nn.Module, data: ImageSource, config: EvaluationConfig, device: torch.device) -> None:
    """Try PGD and every part of AutoAttack on two images; ValueError if one cannot work. The model is left as found."""
    x, y = images_of(data, 2)
    threat, chosen = config.threat(), config.autoattack_arguments()
    with failures('PGD', data), eval_mode(model):
        PGD(eps=threat.radius, norm=threat.norm, steps=1, seed=config.seed, capture='none')(
            model, x.to(device), y.to(device))
    if (version := chosen['autoattack_version']) is not None:
        rehearse_autoattack(
            model, x, y, device=device, eps=threat.radius, norm=threat.norm, version=version,
            attacks=chosen['attacks'], seed=config.seed, capture='none')


def rehearse_update(run: 'Run', model: nn.Module) -> None:
    """Make one update of the model with as many images as the smallest micro-batch of the run has."""
    config, real, processes, device = run.config, readable(run), run.processes, run.processes.device
    shares = run.data.shares()
    size = min(min(micro_batch_sizes(share, config.grad_accum_steps, max(shares))) for share in shares)
    x, y = (tensor.to(device) for tensor in images_of(real, size))
    target = label_distribution(y, real.num_classes, smoothing=0.) if run.data.soft else y
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    alone = dataclasses.replace(
        config, attack_steps=1, attack_step_size=None, grad_accum_steps=1, torchcompile=None, torchcompile_mode=None,
        capture='none')
    last = run.epochs * run.updates_per_epoch - 1  # warm-ups are over, and weights are perturbed
    several = f', {processes.world_size} processes' if processes.is_distributed else ''
    images = f'{size} image{"" if size == 1 else "s"}'
    place = f'an update with {images} (--batch-size {config.batch_size}, --grad-accum-steps {config.grad_accum_steps}'
    with failures(f'{place}{several}, --opt {config.opt})', real):
        task = make_task(alone, model, Processes(device), run.updates_per_epoch)
        optimizer = make_optimizer(alone, model)
        task.attach_optimizer(optimizer)
        task.train()
        step = TrainStep(
            alone, task=task, optimizer=optimizer, schedule=None, ema=None, processes=Processes(device))
        step(Batch(x, y, torch.zeros(len(x), dtype=torch.bool), target, len(x)), last)


def readable(run: 'Run') -> ImageSource:
    """The training images; the validation images if those are a stream, which cannot be read at an index."""
    return run.val if isinstance(run.data.real, StreamedImages) else run.data.real


def images_of(data: ImageSource, count: int) -> tuple[Tensor, Tensor]:
    """The first images as float32 in [0, 1], and their classes."""
    images, labels = data.take(torch.arange(count) % len(data))
    return to_unit_range(images).contiguous(), labels if labels.ndim == 1 else labels.argmax(1)


@contextlib.contextmanager
def failures(what: str, data: ImageSource) -> Iterator[None]:
    """Turn any error of the block into a ValueError of one line, which says what has failed on which images."""
    try:
        yield
    except Exception as error:
        advice = ''
        if 'more than 1 value per channel' in str(error):
            advice = ' BatchNorm cannot train on one image; use fewer --grad-accum-steps or a larger --batch-size.'
        raise ValueError(
            f'{what} fails on images of shape {tuple(data.image_shape)}: {" ".join(str(error).split())[:300]}{advice}'
        ) from error
