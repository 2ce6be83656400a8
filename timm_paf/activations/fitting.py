"""Parameters with which an activation starts as another one, or as close to it as possible."""
import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from timm_paf.activations.modules import ACTIVATIONS, ParameterSpec, ParametricActivation

__all__ = ['FIT_ALPHA_MAX', 'FIT_RANGE', 'PAIRS', 'Fit', 'fit_activation']

FIT_RANGE = 8.  # deviations are measured for |x| up to this
FIT_ALPHA_MAX = 100.  # a larger sharpness would be closer to ReLU's kink, but would no longer learn
# new activation -> old one and the alpha with which the two are the same function
PAIRS: dict[str, dict[type[nn.Module], Callable[..., float]]] = {
    'prelu0': {nn.ReLU: lambda old: 0., nn.LeakyReLU: lambda old: old.negative_slope},
    'preluplus': {nn.ReLU: lambda old: 1.},
    'reblu': {nn.ReLU: lambda old: 0.},
    'pelu': {nn.ReLU: lambda old: 0., nn.ELU: lambda old: old.alpha},
    'peluplus': {nn.ELU: lambda old: 1.},
    'psilu': {nn.SiLU: lambda old: 1.},
    'pssilu': {nn.SiLU: lambda old: 1.},
    'psoftplus': {nn.Softplus: lambda old: float(old.beta)},
}
_STARTS = {'alpha': (0., 1., 0.01, 0.1, 0.2, 0.25, 0.3, 1.702, 3., 10., FIT_ALPHA_MAX), 'beta': (1e-8, 0.1, 0.3)}
_GAIN = 1e-12  # a smaller improvement is rounding
_EXACT = 1e-6  # a smaller deviation is rounding


class Fit(NamedTuple):
    """Initial values, and the largest |new(x) - old(x)| over |x| <= FIT_RANGE that remains."""
    values: dict[str, float]
    deviation: float


def fit_activation(name: str, old: Callable[[Tensor], Tensor], module: nn.Module | None = None) -> Fit:
    """Find parameters of an activation that bring it closest to another one.

    Where `PAIRS` says that the two can be equal, its values are taken. Otherwise a search makes the largest deviation
    over |x| <= `FIT_RANGE` as small as possible, with alpha up to `FIT_ALPHA_MAX`.

    Args:
        name: Registered name of the new activation.
        old: The activation to imitate, elementwise, float64 in and out.
        module: The module that `old` belongs to, for its type and settings.

    Returns:
        Values for the constructor, and the deviation. Constants of the new activation keep their values.
    """
    with torch.no_grad():
        target = old(_points())
    exact = PAIRS.get(name, {}).get(type(module))  # type: ignore[arg-type]  # None has no entry
    first: dict[str, float] = {'alpha': exact(module)} if exact else {}
    if isinstance(module, ParametricActivation):
        first = {label: float(getattr(module, label).detach()) for label in module.parameter_specs}
    return _fit(name, tuple(target.tolist()), tuple(first.items()))


def _points() -> Tensor:
    """Inputs, half of them within 1 of 0, where kinks and bends are; on the CPU also under another default device."""
    return torch.cat([torch.linspace(-w, w, 1601, device='cpu') for w in (FIT_RANGE, 1.)]).double().sort().values


@lru_cache(maxsize=256)
def _fit(name: str, targets: tuple[float, ...], first: tuple[tuple[str, float], ...]) -> Fit:
    x, target = _points(), torch.tensor(targets, dtype=torch.float64, device='cpu')
    cls = ACTIVATIONS[name]
    specs = {label: spec for label, spec in cls.parameter_specs.items() if spec.learnable}

    def fit(**values: float) -> Fit:
        arguments: dict[str, Any] = {**values, 'device': 'cpu', 'dtype': torch.float64}
        with torch.no_grad():
            return Fit(values, float((cls(**arguments)(x) - target).abs().max()))

    def better(one: Fit, other: Fit) -> Fit:
        return other if other.deviation < one.deviation - _GAIN else one

    grids = {label: _grid(label, spec) for label, spec in specs.items()}
    initial = {label: spec.init for label, spec in specs.items()}
    known = {label: specs[label].clamp(value) for label, value in first if label in specs}
    best = better(fit(**initial), fit(**{**initial, **known}))
    if not known or best.deviation > _EXACT:
        for values in itertools.product(*grids.values()):
            best = better(best, fit(**dict(zip(specs, values, strict=True))))
    if best.deviation > _EXACT:
        for label, grid in grids.items():
            best = better(best, _refined(fit, best.values, label, sorted(grid)))
    return best


def _refined(fit: Callable[..., Fit], values: dict[str, float], label: str, grid: list[float]) -> Fit:
    """Search one parameter between its neighbours in the grid."""
    from scipy.optimize import minimize_scalar  # imported here because it takes longer to import than this package
    low = max((value for value in grid if value < values[label]), default=grid[0])
    high = min((value for value in grid if value > values[label]), default=grid[-1])
    found = float(minimize_scalar(
        lambda value: fit(**{**values, label: float(value)}).deviation, bounds=(low, high), method='bounded',
        options={'xatol': 1e-9}).x)
    rounded = min(max(round(found, 6), low), high)  # 0.3 rather than 0.29999997
    return min((fit(**{**values, label: value}) for value in (rounded, found)), key=lambda result: result.deviation)


def _grid(label: str, spec: ParameterSpec) -> list[float]:
    """Values to try: both signs where the formula does not take the absolute value."""
    signed = math.isinf(spec.greatest) and not spec.least
    least, greatest = max(spec.least, 1e-8), min(spec.greatest, FIT_ALPHA_MAX)
    positive = [min(max(value, 0. if signed else least), greatest) for value in _STARTS[label]]
    return list(dict.fromkeys([*positive, *(-value for value in positive if signed)]))
