"""The model of a run and its task: the one place where settings become losses and attacks."""
import torch
from timm.layers import convert_sync_batchnorm, set_reentrant_ckpt
from torch import nn

from timm_paf import fix_parameters
from timm_paf.attacks import PGD
from timm_paf.data import ImageSource, derive_seed
from timm_paf.engine.cli import assignments
from timm_paf.engine.compilation import compile_settings, piece_size
from timm_paf.engine.config import TrainConfig
from timm_paf.engine.distributed import Processes
from timm_paf.engine.settings import build_model
from timm_paf.models import load_weights
from timm_paf.tasks import AdversarialTrainingTask, create_task

__all__ = ['make_model', 'make_task', 'training_attack']


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
    if config.act_fixed:
        try:
            fix_parameters(model, assignments(config.act_fixed, '--act-fixed'))
        except (TypeError, ValueError) as error:
            raise ValueError(f'--act-fixed {" ".join(config.act_fixed)}: {error}') from None
    if config.grad_checkpointing:
        try:
            set_reentrant_ckpt(False)  # the other kind rules out a shared activation in several processes
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f'--grad-checkpointing: {config.model} has none ({error}).') from None
    if config.sync_bn:
        if not processes.is_distributed or processes.device.type == 'cpu':
            raise ValueError('--sync-bn is for several processes on GPUs; start them with torchrun, or leave it out.')
        model = convert_sync_batchnorm(model)
    model.to(processes.device)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def training_attack(config: TrainConfig, processes: Processes) -> PGD:
    """The attack that training uses; each process draws random starts of its own."""
    seed = config.seed if processes.is_primary else derive_seed('attack', config.seed, processes.rank)
    size = piece_size(config.batch_size, world_size=processes.world_size, pieces=config.grad_accum_steps)
    return PGD(
        compile=compile_settings(config, size), eps=config.eps, norm=config.norm,
        step_size=config.attack_step_size, steps=config.attack_steps,
        step_rule=config.attack_step_rule, mode=config.attack_mode, random_start=config.attack_random_start, seed=seed,
        loss=config.attack_loss or ('kl' if config.task == 'trades' else 'ce'))


def make_task(
        config: TrainConfig, model: nn.Module, processes: Processes, updates_per_epoch: int) -> AdversarialTrainingTask:
    """The task that computes the loss of a batch."""
    return create_task(
        config.task, model, training_attack(config, processes), options=config.task_options(updates_per_epoch),
        device=processes.device)
