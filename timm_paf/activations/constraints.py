"""Ranges of alpha and beta: every limit, and what keeps the parameters of a model inside."""
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    'ALPHA_MAX', 'BETA_BOUND', 'BETA_MAX', 'PSOFTPLUS_ALPHA_MIN', 'ParameterSpec', 'check_parameters',
    'fix_parameters', 'project_parameters',
]

#: Largest |alpha| inside a sigmoid. Above it the sigmoid is a step for every practical x.
ALPHA_MAX = 1e4
#: Smallest |alpha| of PSoftplus, whose value at 0, log(2)/|alpha|, grows without bound as |alpha| goes to 0.
PSOFTPLUS_ALPHA_MIN = 1e-3
#: Largest |beta| of the formulas, which divide by 1 - |beta|.
BETA_MAX = 0.99
#: Largest |beta| in training. At |beta| = 1/2 PSSiLU is even, x tanh(|alpha| x / 2), with slopes of -1 and 1.
#: Above it the negative side is steeper: its slope |beta|/(1 - |beta|) has a pole at |beta| = 1.
BETA_BOUND = 0.5


class ParameterSpec(NamedTuple):
    """One parameter: initial value, whether it learns by default, smallest and largest absolute value."""
    init: float
    learnable: bool = True
    least: float = 0.
    greatest: float = math.inf

    def check(self, value: float, label: str) -> None:
        """Raise ValueError if a value is not a finite number inside the range."""
        if not math.isfinite(value):
            raise ValueError(f'{label} = {value}: expected a finite number.')
        if not self.least <= abs(value) <= self.greatest:
            raise ValueError(f'{label} = {value}: expected {self.least:g} <= |{label}| <= {self.greatest:g}.')

    def clamp(self, value: float) -> float:
        """Move a value to the nearest one inside the range, with its sign."""
        return math.copysign(min(max(abs(value), self.least), self.greatest), value)


def _specified(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, ParameterSpec]]]:
    """Modules that declare `parameter_specs`, which are the parametric activations, with their first name."""
    for name, module in model.named_modules():
        specs = getattr(module, 'parameter_specs', None)
        if specs:
            yield name, module, specs


def fix_parameters(model: nn.Module, values: Mapping[str, float]) -> None:
    """Set alpha or beta of every parametric activation of a model to a constant.

    The parameters become buffers, as with `learnable=False`: they are saved and moved with the model, and optimizers
    do not see them. Call it before you create an optimizer, an EMA or a wrapper.

    Args:
        model: Changed in place.
        values: 'alpha' and/or 'beta' to a number inside the range of each activation.

    Raises:
        ValueError: If the model has no parametric activation, one of them lacks a parameter, a tool of torch such as
            `parametrize` computes it, or a value is outside its range. The model is then unchanged.

    Example:
        >>> timm_paf.fix_parameters(timm.create_model('wrn28_10_psilu'), {'alpha': 2.})
    """
    found = list(_specified(model))
    if values and not found:
        raise ValueError(f'{type(model).__name__} has no parametric activation whose {" or ".join(values)} to fix.')
    for prefix, module, specs in found:
        for name, value in values.items():
            if name not in specs:
                raise ValueError(
                    f'{prefix} is a {type(module).__name__}, which has no {name!r}; it has {" and ".join(specs)}.')
            if name not in {**module._parameters, **module._buffers}:
                raise ValueError(
                    f'{prefix}.{name} is computed from other parameters by a tool of torch (parametrize, prune or '
                    'weight_norm), so it cannot be set; remove that first.')
            specs[name].check(float(value), name)
    for _, module, _ in found:
        for name, value in values.items():
            constant = torch.full_like(getattr(module, name), float(value), requires_grad=False)
            if name in module._parameters:
                del module._parameters[name]
                module.register_buffer(name, constant)
            else:
                getattr(module, name).copy_(constant)


@torch.no_grad()
def project_parameters(model: nn.Module, *, beta_bound: float | None = BETA_BOUND) -> None:
    """Move every learnable alpha and beta to the nearest value inside its range, in place.

    After each optimizer step this is projected gradient descent: no step, however long, leaves beta near the pole of
    PSSiLU at 1. Inside the range the function and its gradients are those of the formula. Values inside the range keep
    their bits, NaN stays NaN, and there is no wait for the device.

    Args:
        model: Any module.
        beta_bound: Largest |beta|, above 0 and at most `functional.BETA_MAX`. None allows all of the formula's range,
            which always holds for alpha.

    Example:
        >>> optimizer.step()
        >>> timm_paf.project_parameters(model)
    """
    for _, parameter, spec in _learnable(model, beta_bound):
        if not isinstance(parameter, nn.Parameter):
            continue  # a tool of torch computes it from others, which are not to be changed
        if spec.greatest < math.inf:
            parameter.clamp_(-spec.greatest, spec.greatest)
        if spec.least > 0:
            edge = torch.where(parameter < 0, -spec.least, spec.least).to(parameter)
            parameter.copy_(torch.where(parameter.abs() < spec.least, edge, parameter))


def check_parameters(model: nn.Module, *, beta_bound: float | None = BETA_BOUND) -> None:
    """Raise an error if `project_parameters` would change a model.

    Args:
        model: Any module, with its weights.
        beta_bound: As for `project_parameters`.

    Raises:
        ValueError: If a learnable alpha or beta is outside its range.
    """
    for label, parameter, spec in _learnable(model, beta_bound):
        values = parameter.detach().abs()
        if not parameter.is_meta and bool(((values < spec.least) | (values > spec.greatest)).any()):
            raise ValueError(
                f'{label} = {parameter.detach().flatten()[:4].tolist()}: expected absolute values from {spec.least:g} '
                f'to {spec.greatest:g} to train from; raise the bound (beta_bound) to allow larger ones.')


def _learnable(model: nn.Module, beta_bound: float | None) -> Iterator[tuple[str, Tensor, ParameterSpec]]:
    for prefix, module, specs in _specified(model):
        for name, spec in specs.items():
            if name == 'beta' and beta_bound is not None:
                spec = spec._replace(greatest=min(spec.greatest, beta_bound))
            if name not in module._buffers:
                yield f'{prefix}.{name}' if prefix else name, getattr(module, name), spec
