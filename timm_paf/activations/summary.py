"""alpha and beta of a network, their gradients and the shape they give, as one row of numbers."""
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from timm_paf.activations import shape
from timm_paf.activations.modules import ACTIVATIONS, ParametricActivation
from timm_paf.activations.sharing import paf_modules

__all__ = ['activation_summary', 'MANY']

MANY = 6  # more activations than this are summed up; a network has up to six stages
_SHAPE = ('finite_curvature', 'negative_mean', 'negative_min', 'slope_left')


def activation_summary(model: nn.Module) -> dict[str, float]:
    """The parametric activations of a network in numbers, for a row of a log each epoch.

    With one activation the names are 'alpha', 'beta' (those that it has), 'alpha_grad', 'beta_grad' (norms of the
    present gradients; NaN for a parameter without) and, of the shape that the parameters give, 'finite_curvature',
    'negative_mean', 'negative_min' and 'slope_left' as in `timm_paf.shape.ActivationShape`. With several, each name has
    the place in front, as in 'layer2.0.act1.alpha'. With more than six, or one value per channel, the parameters are
    summed up as 'alpha_mean', 'alpha_min', 'alpha_max', the gradients as one norm, and the shape is that of the
    mean parameters.

    Args:
        model: Any network; read back from its device once for each number.

    Returns:
        Names to plain numbers, the same names each time; empty without a parametric activation. The shape of
        parameters that are not finite is NaN.
    """
    modules = list(paf_modules(model))
    kinds = {type(module) for _, module in modules}
    if len(modules) > MANY or any(module.num_parameters > 1 for _, module in modules):
        row: dict[str, float] = {}
        for kind in sorted(kinds, key=lambda kind: kind.__name__):
            prefix = '' if len(kinds) == 1 else f'{_name(kind)}.'
            row.update(_together([module for _, module in modules if type(module) is kind], prefix))
        return row
    row = {}
    for place, module in modules:
        row.update(_alone(module, '' if len(modules) == 1 else f'{place}.'))
    return row


def _alone(module: ParametricActivation, prefix: str) -> dict[str, float]:
    values = {name: float(getattr(module, name).detach()) for name in module.parameter_specs}
    gradients = {f'{name}_grad': _gradient_norm([getattr(module, name)]) for name in values}
    return {
        f'{prefix}{name}': value for name, value in {**values, **gradients, **_shape_of(type(module), values)}.items()}


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
    inside = dict(_inside(kind, values))
    described = shape.describe(_name(kind), **inside)
    return {name: float(getattr(described, name)) for name in _SHAPE}


def _inside(kind: type[ParametricActivation], values: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Values in the range that the formulas hold them in."""
    for name, value in values.items():
        spec = kind.parameter_specs[name]
        yield name, math.copysign(min(max(abs(value), spec.least), spec.greatest), value)


def _name(kind: type[ParametricActivation]) -> str:
    return next(name for name, cls in ACTIVATIONS.items() if cls is kind)
