"""The network of a run, its training attack and its task."""
import difflib
import inspect
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm, set_reentrant_ckpt
from timm.utils import random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import timm_paf  # noqa: F401  (registers the models)
from timm_paf._distributed import Processes
from timm_paf.activations import fix_parameters
from timm_paf.attacks import PGD
from timm_paf.data import ImageSource, derive_seed
from timm_paf.data.errors import first_line
from timm_paf.engine.cli import assignments
from timm_paf.engine.execution import compile_settings
from timm_paf.engine.normalization import inner_model, load_network, set_normalization
from timm_paf.engine.step import micro_batch_sizes
from timm_paf.engine.train_config import TrainConfig
from timm_paf.tasks import AdversarialTrainingTask, create_task

__all__ = ['build_model', 'make_task', 'prepare_model', 'start_task', 'untrained_model']


def build_model(name: str, *, num_classes: int, in_chans: int, **kwargs: Any) -> nn.Module:
    """Create a model by its name in timm's registry; `kwargs` are its arguments.

    Raises:
        ValueError: If timm knows no such model (the message names similar ones), or it takes no such argument.
        OSError: If pretrained weights cannot be downloaded or read.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'timm.list_models("*_pssilu") lists ours.'
        raise ValueError(f'--model = {name!r}: timm knows no such model; {hint}')
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **kwargs)
    except TypeError as error:
        if not kwargs:
            raise
        raise ValueError(f'--model-kwargs {kwargs}: {name} does not take them ({error}).') from None
    except OSError as error:
        if not kwargs.get('pretrained'):
            raise
        raise OSError(
            f'--model {name}: its pretrained weights cannot be read ({first_line(error)}). Check the network, or name '
            'a file with --model-kwargs "pretrained_cfg_overlay={file: FILE}".') from error


def untrained_model(
        config: TrainConfig, own: nn.Module | None, data: ImageSource) -> tuple[nn.Module, list[str]]:
    """The network that training starts from, on the CPU (`own`, changed in place, or `config.model`), and notes on it.

    Raises:
        ValueError: If the model cannot be built, or a setting does not fit it.
    """
    arguments, notes = config.model_arguments(), []
    model = own if own is not None else build_model(
        config.model, num_classes=data.num_classes, in_chans=data.image_shape[0], **arguments)
    if config.initial_checkpoint is not None:
        loaded = load_network(model, config.initial_checkpoint, config, name=config.model)
        model, notes = loaded.model, [loaded.note, f'warning: {loaded.warning}' if loaded.warning else '']
    else:
        pretrained = own is None and bool(arguments.get('pretrained') or arguments.get('checkpoint_path'))
        model, note = set_normalization(
            model, config, name=config.model, own=own is not None, pretrained=pretrained)
        notes = [note, _size_note(model, config.model, data.image_shape) if pretrained else '']
    if config.act_fixed:
        try:
            fix_parameters(model, assignments(config.act_fixed, '--act-fixed'))
        except (TypeError, ValueError) as error:
            raise ValueError(f'--act-fixed {" ".join(config.act_fixed)}: {error}') from None
    return model, [note for note in notes if note]


def _size_note(model: nn.Module, name: str, shape: tuple[int, int, int]) -> str:
    """A line if timm's weights are for images of another size."""
    size = (getattr(inner_model(model), 'pretrained_cfg', None) or {}).get('input_size', shape)
    return '' if tuple(size[1:]) == tuple(shape[1:]) else (
        f'{name} was trained on images of {size[1]}x{size[2]} pixels; these have {shape[1]}x{shape[2]}')


def prepare_model(config: TrainConfig, model: nn.Module, processes: Processes) -> nn.Module:
    """The network on the device, with gradient checkpointing, SyncBatchNorm and memory format as the settings say.

    Raises:
        ValueError: If the model does not support a setting.
    """
    if config.grad_checkpointing:
        try:
            set_reentrant_ckpt(False)  # reentrant checkpointing and a shared activation exclude each other under DDP
            enable: Any = inner_model(model).set_grad_checkpointing  # timm's models have it
            enable(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f'--grad-checkpointing: {config.model} does not support it ({error}).') from None
    if config.sync_bn:
        if not processes.is_distributed or processes.device.type == 'cpu':
            raise ValueError('--sync-bn is for several processes on GPUs; start them with torchrun, or leave it out.')
        model = convert_sync_batchnorm(model)
    model.to(processes.device)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model  # type: ignore[call-overload]


def make_task(
        config: TrainConfig, model: nn.Module, processes: Processes, updates_per_epoch: int) -> AdversarialTrainingTask:
    """The task, which computes the loss of a batch; each process draws its own random starts of the attack."""
    # number of images that a process attacks at once
    share = -(-config.batch_size // processes.world_size)
    largest = max(max(micro_batch_sizes(count, config.grad_accum_steps, share)) for count in range(1, share + 1))
    attack = PGD(
        eps=config.eps, norm=config.norm, step_size=config.attack_step_size, steps=config.attack_steps,
        step_rule=config.attack_step_rule, mode=config.attack_mode, random_start=config.attack_random_start,
        loss=config.attack_loss or ('kl' if config.task == 'trades' else 'ce'),
        seed=config.seed if processes.is_primary else derive_seed('attack', config.seed, processes.rank),
        compile=compile_settings(config, largest), capture=config.capture)
    return create_task(
        config.task, model, attack, options=config.task_options(updates_per_epoch), device=processes.device)


def start_task(config: TrainConfig, task: AdversarialTrainingTask, processes: Processes) -> None:
    """Compile the model of a task if asked, and let several processes average their gradients.

    BatchNorm's running statistics stay local to each process until validation.

    Raises:
        ValueError: If torch knows no such backend.
    """
    if config.torchcompile is not None:
        try:
            # one graph per batch size: with symbolic sizes, the result of a batch depends on the batches before it
            task.compile(backend=config.torchcompile, mode=config.torchcompile_mode, dynamic=False)
        except RuntimeError as error:  # only about names; torch compiles later
            raise ValueError(f'--torchcompile {config.torchcompile}: {error}') from None
    if processes.is_distributed:
        known = inspect.signature(DistributedDataParallel).parameters
        keep_buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'  # torch<2.14
        devices = [processes.local_rank] if processes.device.type == 'cuda' else None
        task.prepare_distributed(device_ids=devices, **{keep_buffers: False})
        random_seed(config.seed, processes.rank)
