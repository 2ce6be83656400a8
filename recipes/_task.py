"""The model of a run and its task: the one place where settings become losses and attacks."""
from collections.abc import Callable

import torch
from _cli import assignments
from _processes import Processes
from _settings import build_model
from _train_settings import TrainConfig
from timm.layers import convert_sync_batchnorm, set_reentrant_ckpt
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn

from timm_paf import paf_parameters
from timm_paf.attacks import LOSSES, PGD
from timm_paf.data import ImageSource, derive_seed
from timm_paf.models import load_weights
from timm_paf.tasks import AdversarialTrainingTask

__all__ = ['make_model', 'make_task', 'training_attack']

# Gradients of images that the model is sure of are far below the smallest number of float16.
FP16_ATTACK_SCALE = 256.


def make_model(config: TrainConfig, data: ImageSource, processes: Processes) -> nn.Module:
    """The model with the weights to start from, on the device.

    Raises:
        ValueError: If it cannot be built, or does not do what a setting asks for.
    """
    torch.manual_seed(config.seed)
    model = build_model(
        config.model, num_classes=data.num_classes, in_chans=data.image_shape[0], **config.model_arguments())
    if config.initial_checkpoint is not None:
        load_weights(model, config.initial_checkpoint)
    fix_activations(model, config)
    if config.grad_checkpointing:
        try:
            set_reentrant_ckpt(False)  # the other kind rules out a shared activation in several processes
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f'--grad-checkpointing: {config.model} has none ({error}).') from None
    if config.sync_bn:
        if not processes.several or processes.device.type == 'cpu':
            raise ValueError('--sync-bn is for several processes on GPUs; start them with torchrun, or leave it out.')
        model = convert_sync_batchnorm(model)
    model.to(processes.device)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def fix_activations(model: nn.Module, config: TrainConfig) -> None:
    """Set the parameters that --act-fixed names to their values, and keep them there.

    Raises:
        ValueError: If the model has none of a name, or the value is not a number.
    """
    for kind, value in assignments(config.act_fixed, '--act-fixed').items():
        found = [p for name, p in paf_parameters(model).items() if name.rsplit('.', 1)[-1] == kind]
        if not found:
            raise ValueError(f'--act-fixed {kind}={value}: {config.model} has no activation with a parameter {kind}.')
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f'--act-fixed {kind}={value}: expected a number.')
        for parameter in found:
            nn.init.constant_(parameter, value)
            parameter.requires_grad_(False)


def training_attack(config: TrainConfig, processes: Processes) -> PGD:
    """The attack that training uses; each process draws random starts of its own."""
    seed = config.seed if processes.primary else derive_seed('attack', config.seed, processes.rank)
    loss = 'ce' if not (config.amp and config.amp_dtype == 'float16') else scaled(LOSSES['ce'])
    return PGD(
        eps=config.eps, step_size=config.attack_step_size, steps=config.attack_steps, loss=loss,
        random_start=config.attack_random_start, seed=seed)


def scaled(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss whose gradients do not underflow in float16; the direction of a step is the same."""
    return lambda logits, y: FP16_ATTACK_SCALE * loss(logits, y)


def make_task(config: TrainConfig, model: nn.Module, processes: Processes) -> TrainingTask:
    """The task that computes the loss of a batch."""
    criterion = nn.CrossEntropyLoss()
    if config.task == 'plain':
        return ClassificationTask(model, criterion, device=processes.device, verbose=False)
    return AdversarialTrainingTask(
        model, training_attack(config, processes), criterion=criterion, beta_penalty=config.beta_penalty,
        beta_grad_clip=config.beta_grad_clip, device=processes.device, verbose=False)
