"""Parameter groups for optimizers, with a group of its own for alpha and beta."""
from typing import Any, cast

from timm.optim import param_groups_weight_decay
from torch import nn

from timm_paf.activations import paf_parameters

__all__ = ['paf_parameter_groups']


def paf_parameter_groups(
        model: nn.Module, *, weight_decay: float = 0., paf_weight_decay: float | None = None,
        paf_lr: float | None = None, filter_bias_and_bn: bool = True,
) -> list[dict[str, Any]]:
    """Make groups for `timm.optim.create_optimizer_v2`: alpha and beta get their own weight decay and learning rate.

    Args:
        model: The network without wrappers; parameters without `requires_grad` are left out.
        weight_decay: Weight decay of all other parameters, at least 0.
        paf_weight_decay: Weight decay of alpha and beta, at least 0. None treats them as any tensor of rank 1: decayed
            unless `filter_bias_and_bn`. The authors of arXiv 2110.05626 decay them with everything else.
        paf_lr: Learning rate of alpha and beta, above 0; schedules start from it. None for the optimizer's.
        filter_bias_and_bn: Do not decay tensors of rank 1 (biases, normalisation), as timm does.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> groups = paf_parameter_groups(model, weight_decay=5e-4, paf_weight_decay=0., paf_lr=0.01)
        >>> optimizer = timm.optim.create_optimizer_v2(groups, opt='sgd', lr=0.1)
    """
    for label, decay in (('weight_decay', weight_decay), ('paf_weight_decay', paf_weight_decay)):
        if decay is not None and not decay >= 0:
            raise ValueError(f'{label} = {decay}: expected a number >= 0.')
    if paf_lr is not None and not paf_lr > 0:
        raise ValueError(f'paf_lr = {paf_lr}: expected a number > 0, or None for the learning rate of the optimizer.')
    exempt = cast(Any, model).no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    groups = param_groups_weight_decay(
        model, weight_decay, weight_decay_exclude_1d=filter_bias_and_bn, no_weight_decay_list=exempt)
    own = [p for p in paf_parameters(model).values() if p.requires_grad]
    if not own:
        return groups
    if paf_weight_decay is None:
        paf_weight_decay = 0. if filter_bias_and_bn else weight_decay
    ids = {id(p) for p in own}
    for group in groups:
        group['params'] = [p for p in group['params'] if id(p) not in ids]
    lr = {} if paf_lr is None else {'lr': paf_lr}
    return [*(group for group in groups if group['params']), {'params': own, 'weight_decay': paf_weight_decay, **lr}]
