"""Holding alpha and beta where they are meant to be: at a fixed value, or inside a range."""
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from timm_paf.activations.modules import ParameterSpec
from timm_paf.activations.sharing import paf_modules

__all__ = ['BETA_BOUND', 'check_parameters', 'fix_parameters', 'project_parameters']

# At |beta| = 1/2 PSSiLU is even, x tanh(|alpha| x / 2): the slope at 0 is 0, that at -inf is -1. Beyond it the negative
# side is the steeper one, with a slope of |beta|/(1 - |beta|), and so without end towards the pole at 1.
BETA_BOUND = 0.5


def fix_parameters(model: nn.Module, values: Mapping[str, float]) -> None:
    """Set alpha or beta of every parametric activation of a model, and keep them from learning.

    The parameters become buffers, as with `learnable=False`: saved and moved with the model, not seen by optimizers.
    Call it before an optimizer, an average or a wrapper is made.

    Args:
        model: Changed in place.
        values: 'alpha' and/or 'beta' to a number inside the range of each activation.

    Raises:
        ValueError: If an activation of the model lacks a parameter, the model has no such activation, or a value is
            outside its range; the model is unchanged then.

    Example:
        >>> timm_paf.fix_parameters(timm.create_model('wrn28_10_psilu'), {'alpha': 2.})
    """
    modules = list(paf_modules(model))
    if values and not modules:
        raise ValueError(f'{type(model).__name__} has no parametric activation whose {" or ".join(values)} to fix.')
    for prefix, module in modules:
        for name, value in values.items():
            spec = module.parameter_specs.get(name)
            if spec is None:
                known = ' and '.join(module.parameter_specs)
                raise ValueError(f'{prefix} is a {type(module).__name__}, which has no {name!r}; it has {known}.')
            spec.check(float(value), name)
    for _, module in modules:
        for name, value in values.items():
            held = getattr(module, name)
            constant = torch.full_like(held, float(value), requires_grad=False)
            if name in module._parameters:
                del module._parameters[name]
                module.register_buffer(name, constant)
            else:
                held.copy_(constant)


@torch.no_grad()
def project_parameters(model: nn.Module, *, beta_bound: float | None = BETA_BOUND) -> None:
    """Move every learnable alpha and beta to the nearest value inside its range, in place.

    After each step of an optimizer this is projected gradient descent: no step, however long, leaves beta near the pole
    of PSSiLU at 1, and the function and its gradients inside the range are those of the formula. Values inside keep
    their bits, NaN stays NaN, and nothing waits for the device.

    Args:
        model: Any module.
        beta_bound: Largest |beta|, above 0 and at most `functional.BETA_MAX`; None for that. alpha has the range of its
            formula.

    Example:
        >>> optimizer.step()
        >>> timm_paf.project_parameters(model)
    """
    for _, parameter, spec in _learnable(model, beta_bound):
        if spec.greatest < math.inf:
            parameter.clamp_(-spec.greatest, spec.greatest)
        if spec.least > 0:
            edge = torch.where(parameter < 0, -spec.least, spec.least).to(parameter)
            parameter.copy_(torch.where(parameter.abs() < spec.least, edge, parameter))


def check_parameters(model: nn.Module, *, beta_bound: float | None = BETA_BOUND) -> None:
    """Raise ValueError if `project_parameters` would change a model.

    Args:
        model: Any module, with its weights.
        beta_bound: As `project_parameters`.

    Raises:
        ValueError: If it would, or beta_bound is not in its range.
    """
    for label, parameter, spec in _learnable(model, beta_bound):
        values = parameter.detach().abs()
        if not parameter.is_meta and bool(((values < spec.least) | (values > spec.greatest)).any()):
            raise ValueError(
                f'{label} = {parameter.detach().flatten()[:4].tolist()}: expected absolute values from {spec.least:g} '
                f'to {spec.greatest:g} to train from; for larger ones raise the bound (beta_bound).')


def _learnable(model: nn.Module, beta_bound: float | None) -> Iterator[tuple[str, Tensor, ParameterSpec]]:
    for prefix, module in paf_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            spec = module.parameter_specs[name]
            if name == 'beta' and beta_bound is not None:
                spec = spec._replace(greatest=min(spec.greatest, beta_bound))
            yield f'{prefix}.{name}' if prefix else name, parameter, spec
