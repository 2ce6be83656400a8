"""alpha and beta of a network, their gradients and the shape they give, as one row of numbers."""
import math

import torch
from torch import Tensor, nn

from timm_paf.activations import shape
from timm_paf.activations.modules import ParametricActivation
from timm_paf.activations.sharing import paf_modules

__all__ = ['MANY', 'activation_summary']

MANY = 6  # more activations than this are summarised together; a network has up to six stages
_SHAPE = ('finite_curvature', 'negative_mean', 'negative_min', 'slope_left')


def activation_summary(model: nn.Module) -> dict[str, float]:
    """Summarise the parametric activations of a network in numbers, for one row per epoch in a log.

    With one activation, the names are 'alpha', 'beta' (those that it has), 'alpha_grad', 'beta_grad' (norms of the
    current gradients; NaN without one) and, for the shape, 'finite_curvature', 'negative_mean', 'negative_min' and
    'slope_left' as in `timm_paf.shape.ActivationShape`. With several, each name starts with the place, as in
    'layer2.0.act1.alpha'. With more than six, or one value per channel, the parameters become 'alpha_mean',
    'alpha_min', 'alpha_max', the gradients become one norm, and the shape is that of the mean parameters.

    Args:
        model: Any network; each number is one copy from its device.

    Returns:
        Names to plain numbers, with the same names each time; empty without a parametric activation. The shape is NaN
        if a parameter is not finite.
    """
    modules = list(paf_modules(model))
    row: dict[str, float] = {}
    if len(modules) > MANY or any(module.num_parameters > 1 for _, module in modules):
        kinds = sorted({type(module) for _, module in modules}, key=lambda kind: kind.__name__)
        for kind in kinds:
            prefix = '' if len(kinds) == 1 else f'{kind.name}.'
            row.update(_together([module for _, module in modules if type(module) is kind], prefix))
        return row
    for place, module in modules:
        prefix = '' if len(modules) == 1 else f'{place}.'
        values = {name: float(getattr(module, name).detach()) for name in module.parameter_specs}
        gradients = {f'{name}_grad': _gradient_norm([getattr(module, name)]) for name in values}
        numbers = {**values, **gradients, **_shape_of(type(module), values)}
        row.update({f'{prefix}{name}': value for name, value in numbers.items()})
    return row


def _together(modules: list[ParametricActivation], prefix: str) -> dict[str, float]:
    row, means = {}, {}
    for name in modules[0].parameter_specs:
        tensors = [getattr(module, name) for module in modules]
        values = torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])
        means[name] = values.mean().item()
        row.update({
            f'{name}_mean': means[name], f'{name}_min': values.min().item(), f'{name}_max': values.max().item(),
            f'{name}_grad': _gradient_norm(tensors)})
    row.update(_shape_of(type(modules[0]), means))
    return {f'{prefix}{name}': value for name, value in row.items()}


def _gradient_norm(tensors: list[Tensor]) -> float:
    gradients = [tensor.grad.double().cpu().flatten() for tensor in tensors if tensor.grad is not None]
    return torch.linalg.vector_norm(torch.cat(gradients)).item() if gradients else math.nan


def _shape_of(kind: type[ParametricActivation], values: dict[str, float]) -> dict[str, float]:
    if not all(map(math.isfinite, values.values())):
        return dict.fromkeys(_SHAPE, math.nan)
    inside = {name: kind.parameter_specs[name].clamp(value) for name, value in values.items()}
    described = shape.describe(kind.name, **inside)
    return {name: float(getattr(described, name)) for name in _SHAPE}
