"""The optimizer of a run."""
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn

from timm_paf.activations import paf_parameters
from timm_paf.engine.normalization import inner_model
from timm_paf.engine.train_config import TrainConfig
from timm_paf.tasks import paf_parameter_groups

__all__ = ['fused_optimizer', 'learning_rate', 'make_optimizer']


def learning_rate(config: TrainConfig) -> float:
    """Learning rate of the settings: --lr, or --lr-base scaled with the batch size."""
    return config.lr_base * config.batch_size / config.lr_base_size if config.lr is None else config.lr


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Timm's optimizer of the settings; ValueError if timm has none of that name, or settings exclude each other."""
    if plain_name(config) in list_optimizers() and get_optimizer_info(plain_name(config)).second_order:
        raise ValueError(
            f'--opt {config.opt} needs second derivatives of the loss, which this training loop does not compute; '
            f'choose another optimizer, such as adamw.')
    same: dict[str, Any] = dict(weight_decay=config.weight_decay, filter_bias_and_bn=config.filter_bias_and_bn)
    optional: dict[str, Any] = dict(
        eps=config.opt_eps, fused=fused_optimizer(config), betas=config.opt_betas or None)
    model = inner_model(model)  # timm's rules for weight decay and layers are about its names
    parameters: Any = model
    if (config.paf_lr_scale, config.paf_weight_decay, config.norm_weight_decay) != (None, None, None):
        if config.layer_decay is not None:
            raise ValueError(
                '--layer-decay excludes --paf-lr-scale, --paf-weight-decay and --norm-weight-decay; leave one out.')
        parameters = paf_parameter_groups(
            model, paf_weight_decay=config.paf_weight_decay, norm_weight_decay=config.norm_weight_decay, **same)
        if any(p.requires_grad for p in paf_parameters(model).values()):  # their group is the last one
            # schedules of timm multiply by it
            parameters[-1]['lr_scale'] = 1. if config.paf_lr_scale is None else config.paf_lr_scale
    return create_optimizer_v2(
        parameters, opt=config.opt, lr=learning_rate(config), momentum=config.momentum, layer_decay=config.layer_decay,
        **same, **{name: value for name, value in optional.items() if value is not None})


def plain_name(config: TrainConfig) -> str:
    """The name of the optimizer without timm's prefix for Lookahead."""
    return config.opt.lower().removeprefix('lookahead_')


def fused_optimizer(config: TrainConfig) -> bool | None:
    """The `fused` argument of the optimizer; None if it takes none. ValueError if --opt-fused is not supported.

    With float16 a fused optimizer undoes the scaling of gradients inside its step; clipping the gradient of beta just
    before that step would see the scaled gradient.
    """
    scaled = config.amp and config.amp_dtype == 'float16'
    try:
        kind: Any = get_optimizer_class(plain_name(config), bind_defaults=False)
    except ValueError:
        return None  # timm reports the wrong name
    known = kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # others are fused on some devices only
    if config.opt_fused and (scaled or not known):
        why = 'with --amp-dtype float16' if scaled else f'of {config.opt}'
        raise ValueError(f'--opt-fused: there is no fused form {why}; leave it out.')
    if not known:
        return None
    return not scaled if config.opt_fused is None else config.opt_fused
