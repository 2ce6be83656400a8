"""Threat model: the norm and radius of the allowed perturbation."""
import math
from dataclasses import dataclass, field
from fractions import Fraction

from timm_paf.attacks.balls import BALLS
from timm_paf.attacks.checks import choose

__all__ = ['ThreatModel', 'parse_eps']

Eps = str | float | int | Fraction


def parse_eps(eps: Eps, *, label: str = 'eps', norm: str = 'linf') -> float:
    """Read a radius or step size, a number or a fraction such as '8/255', as the nearest float.

    Args:
        eps: In units of the pixel range [0, 1].
        label: Name of the value in an error.
        norm: In 'linf' the maximum is 1; in 'l2' and 'l1' it depends on the images, and the attack checks it.

    Raises:
        ValueError: If it is not a number, not positive, or above 1 in Linf.
    """
    try:
        # part by part, since 0.5/255 is allowed
        value = float(Fraction(*(Fraction(part) for part in str(eps).replace(' ', '').split('/'))))
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise ValueError(f'{label} = {eps!r}: expected a number or a fraction such as 8/255.') from None
    if not 0 < value < math.inf:
        raise ValueError(f'{label} = {eps}: expected a number greater than 0, such as 8/255.')
    if norm == 'linf' and value > 1:
        raise ValueError(f'{label} = {eps}: pixels are in [0, 1]; expected at most 1. Did you mean {eps}/255?')
    return value


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """A norm ball around each image, intersected with the pixel range [0, 1]; ValueError if eps or norm is invalid."""
    eps: Eps  # radius in units of [0, 1], see `parse_eps`
    norm: str = 'linf'  # 'linf', 'l2' or 'l1'
    radius: float = field(init=False)  # eps as a float

    def __post_init__(self) -> None:
        choose('norm', self.norm, BALLS)
        object.__setattr__(self, 'radius', parse_eps(self.eps, norm=self.norm))

    def __str__(self) -> str:
        return f'{self.norm} {self.eps}'
