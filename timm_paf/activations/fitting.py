"""Parameters with which an activation starts as another one, or as near to it as it can be."""
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_paf.activations.modules import ACTIVATIONS

__all__ = ['FIT_RANGE', 'FIT_ALPHA_MAX', 'Fit', 'fit_activation']

FIT_RANGE = 8.  # deviations are measured for |x| up to this
FIT_ALPHA_MAX = 100.  # a sharpness beyond it would be nearer still to ReLU's kink, but would no longer learn
_EXACT = 1e-6  # deviations below it are rounding


class Fit(NamedTuple):
    """Initial values, and the greatest |new(x) - old(x)| over |x| <= FIT_RANGE that they leave."""
    values: dict[str, float]
    deviation: float

    @property
    def exact(self) -> bool:
        """Whether the two are one function, up to rounding."""
        return self.deviation <= _EXACT


def fit_activation(name: str, old: Callable[[Tensor], Tensor]) -> Fit:
    """Find parameters of a registered activation that bring it closest to another activation.

    The greatest deviation over |x| <= `FIT_RANGE` is made as small as possible, with sharpness up to `FIT_ALPHA_MAX`.

    Args:
        name: Registered name of the new activation.
        old: The activation to imitate, elementwise, float64 in and out.

    Returns:
        The values for the constructor, and the deviation that is left. Constants of the activation stay what they are.
    """
    # half the points lie within 1 of 0, where the kinks and bends are
    # on the CPU also under a default device such as meta
    halves = [torch.linspace(-width, width, 1601, device='cpu') for width in (FIT_RANGE, 1.)]
    x = torch.cat(halves).double().sort().values
    with torch.no_grad():
        target = old(x.clone())
    return _fit(name, tuple(x.tolist()), tuple(target.tolist()))


@lru_cache(maxsize=256)
def _fit(name: str, points: tuple[float, ...], targets: tuple[float, ...]) -> Fit:
    x, target = (torch.tensor(values, dtype=torch.float64, device='cpu') for values in (points, targets))
    cls = ACTIVATIONS[name]
    specs = {label: spec for label, spec in cls.parameter_specs.items() if spec.learnable}

    def deviation(values: dict[str, Any]) -> float:
        with torch.no_grad():
            return float((cls(**values, device='cpu', dtype=torch.float64)(x) - target).abs().max())

    bounds = []
    for spec in specs.values():
        signed = math.isinf(spec.greatest)  # the formula takes the parameter as it is, not its absolute value
        least = -FIT_ALPHA_MAX if signed else max(spec.least, 1e-8)
        bounds.append((least, min(FIT_ALPHA_MAX, spec.greatest)))
    best = Fit({label: spec.init for label, spec in specs.items()}, math.inf)
    starts = {
        'alpha': [0., 1., 0.01, 0.1, 0.2, 0.25, 0.3, 1.702, 3., 10., FIT_ALPHA_MAX], 'beta': [1e-8, 0.1, 0.3]}
    grid: list[dict[str, float]] = [{}]
    for label in specs:
        grid = [{**values, label: start} for values in grid for start in starts[label]]
    candidates = [_clipped(values, bounds) for values in grid]
    candidates.insert(0, dict(best.values))
    for values in candidates:
        found = Fit(values, deviation(values))
        if found.deviation < best.deviation - 1e-12:
            best = found
    if best.exact or not specs:
        return best
    from scipy.optimize import minimize  # here, since it takes longer to import than this package
    result = minimize(
        lambda point: deviation(dict(zip(specs, map(float, point), strict=True))), list(best.values.values()),
        method='Nelder-Mead', bounds=bounds, options={'xatol': 1e-9, 'fatol': 1e-10, 'maxiter': 400})
    refined = dict(zip(specs, map(float, result.x), strict=True))
    rounded = {label: round(value, 6) for label, value in refined.items()}
    for values in (refined, _clipped(rounded, bounds)):  # 0.2, not 0.19999997, where that is as good
        found = Fit(values, deviation(values))
        if found.deviation < best.deviation or (found.exact and best.exact):
            best = found
    return best


def _clipped(values: dict[str, float], bounds: list[tuple[float, float]]) -> dict[str, float]:
    return {
        label: min(max(value, low), high) for (label, value), (low, high) in zip(values.items(), bounds, strict=True)}

