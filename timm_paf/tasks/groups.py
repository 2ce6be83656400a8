"""Parameter groups for optimizers, with groups of their own for normalisation layers, and for alpha and beta."""
from typing import Any, cast

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from timm_paf.activations import paf_parameters

__all__ = ['paf_parameter_groups']

NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: BatchNorm and InstanceNorm


def paf_parameter_groups(
        model: nn.Module, *, weight_decay: float = 0., paf_weight_decay: float | None = None,
        norm_weight_decay: float | None = None, paf_lr: float | None = None, filter_bias_and_bn: bool = True,
) -> list[dict[str, Any]]:
    """Make groups for `timm.optim.create_optimizer_v2`: alpha and beta get their own weight decay and learning rate.

    The groups of timm come first, then that of normalisation layers, if `norm_weight_decay` is given, and that of alpha
    and beta, if there are any that learn.

    Args:
        model: The network without wrappers; parameters without `requires_grad` are left out.
        weight_decay: Weight decay of all other parameters, at least 0.
        paf_weight_decay: Weight decay of alpha and beta, at least 0. None treats them as any tensor of rank 1: decayed
            unless `filter_bias_and_bn`. The authors of arXiv 2110.05626 decay them with everything else.
        norm_weight_decay: Weight decay of the weights and biases of normalisation layers (BatchNorm, GroupNorm,
            LayerNorm and their subclasses), at least 0. None treats them as any tensor of rank 1.
        paf_lr: Learning rate of alpha and beta, above 0; schedules start from it. None for the optimizer's.
        filter_bias_and_bn: Do not decay tensors of rank 1 (biases, normalisation), as timm does.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> groups = paf_parameter_groups(model, weight_decay=5e-4, paf_weight_decay=0., paf_lr=0.01)
        >>> optimizer = timm.optim.create_optimizer_v2(groups, opt='sgd', lr=0.1)
    """
    decays = {
        'weight_decay': weight_decay, 'paf_weight_decay': paf_weight_decay, 'norm_weight_decay': norm_weight_decay}
    for label, decay in decays.items():
        if decay is not None and not decay >= 0:
            raise ValueError(f'{label} = {decay}: expected a number >= 0.')
    if paf_lr is not None and not paf_lr > 0:
        raise ValueError(f'paf_lr = {paf_lr}: expected a number > 0, or None for the learning rate of the optimizer.')
    exempt = cast(Any, model).no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    groups = param_groups_weight_decay(
        model, weight_decay, weight_decay_exclude_1d=filter_bias_and_bn, no_weight_decay_list=exempt)
    own: list[dict[str, Any]] = []
    if norm_weight_decay is not None:
        layers = [module for module in model.modules() if isinstance(module, NORMALISATION)]
        # `_parameters`: a BatchNormAct2d also holds its activation
        norms = dict.fromkeys(p for layer in layers for p in layer._parameters.values() if p is not None)
        own.append({'params': [p for p in norms if p.requires_grad], 'weight_decay': norm_weight_decay})
    if paf_weight_decay is None:
        paf_weight_decay = 0. if filter_bias_and_bn else weight_decay
    pafs = [p for p in paf_parameters(model).values() if p.requires_grad]
    own.append({'params': pafs, 'weight_decay': paf_weight_decay, **({} if paf_lr is None else {'lr': paf_lr})})
    taken = {id(p) for group in own for p in group['params']}
    for group in groups:
        group['params'] = [p for p in group['params'] if id(p) not in taken]
    return [group for group in [*groups, *own] if group['params']]
