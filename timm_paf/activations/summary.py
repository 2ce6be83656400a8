"""alpha and beta of a network, their gradients and the shape they give, as one row of numbers."""
import math

import torch
from torch import nn

from timm_paf.activations import shape
from timm_paf.activations.modules import ParametricActivation
from timm_paf.activations.sharing import paf_modules, paf_parameters

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
    modules = dict(paf_modules(model))
    together = len(modules) > MANY or any(module.num_parameters > 1 for module in modules.values())
    groups: dict[str, list[ParametricActivation]] = {place: [module] for place, module in modules.items()}
    if together:
        kinds = sorted({type(module) for module in modules.values()}, key=lambda kind: kind.__name__)
        groups = {kind.name: [m for m in modules.values() if type(m) is kind] for kind in kinds}
    return {name if len(groups) == 1 else f'{label}.{name}': value for label, group in groups.items()
            for name, value in _row(group, together).items()}


def _row(modules: list[ParametricActivation], together: bool) -> dict[str, float]:
    row: dict[str, float] = {}
    means, norms = {}, {}
    for name, spec in modules[0].parameter_specs.items():
        values = torch.cat([getattr(module, name).detach().double().cpu().flatten() for module in modules])
        learned = [parameter for module in modules for parameter in paf_parameters(module, name).values()]
        gradients = [parameter.grad.double().cpu().flatten() for parameter in learned if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat(gradients)).item() if gradients else math.nan
        mean = values.mean().item()
        means[name] = spec.clamp(mean) if math.isfinite(mean) else math.nan
        if together:
            row |= {f'{name}_mean': mean, f'{name}_min': values.min().item(), f'{name}_max': values.max().item(),
                    f'{name}_grad': norm}
        else:
            row[name], norms[f'{name}_grad'] = mean, norm
    found = shape.describe(modules[0].name, **means) if all(map(math.isfinite, means.values())) else None
    return {**row, **norms, **{name: float(getattr(found, name, math.nan)) for name in _SHAPE}}
