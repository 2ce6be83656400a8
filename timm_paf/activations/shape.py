"""The shape of an activation function: curvature, output on negative inputs, slopes, and a plot of them.

Dai, Mahloujifar and Mittal, arXiv 2110.05626, explain the robustness that an activation brings by two properties of its
graph: positive outputs on negative inputs, and a high but finite curvature. `describe` measures both and other
properties, for a registered name, a module with learned parameters, or any elementwise function.
"""
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from timm_paf.activations.curve import Break, Curve, Interval, intervals
from timm_paf.activations.elementwise import Activation, elementwise, title
from timm_paf.activations.shape_plot import plot

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ['Activation', 'ActivationShape', 'Break', 'MEAN_RANGE', 'describe', 'plot']

MEAN_RANGE = 8.  # the mean on negative inputs is over [-8, 0], the range of nearly all normalised pre-activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationShape:
    """Result of `describe`. A place can be -inf or inf: an extremum can be a limit.

    Attributes:
        name: Registered name, or the text of the module.
        parameters: Its parameters.
        curvature: Largest |f''|; inf at a kink.
        curvature_at: Its place, the nearest to 0 if there are several.
        finite_curvature: Largest |f''| away from kinks, including the one-sided limits at kinks.
        finite_curvature_at: Its place.
        negative_sign: Sign of the output on x < 0: 'positive' (somewhere positive, nowhere negative), 'negative',
            'zero' or 'mixed'.
        positive_on: Intervals of x < 0 with positive output.
        negative_on: Intervals of x < 0 with negative output.
        negative_max: Supremum of the output on x < 0.
        negative_max_at: Its place.
        negative_min: Infimum of the output on x < 0.
        negative_min_at: Its place.
        negative_mean: Mean output over -mean_range <= x <= 0, with equal weight for all x.
        mean_range: Length of that interval.
        slope_left: Limit of f' at -inf; infinite if it is unbounded, NaN if there is none.
        slope_right: Limit of f' at inf, in the same way.
        monotonicity: 'increasing' or 'decreasing' (not strictly), 'constant', or 'neither'.
        falls_on: Intervals of falling output; an interval of length 0 is a downward jump.
        zeros: Isolated zeros. A zero without a change of sign is found only at x = 0.
        zero_on: Intervals of zero output.
        smoothness: 'discontinuous', 'C0' (kinks), 'C1' (f'' jumps), 'C2+' (no break found up to the second derivative)
            or 'smooth' (all derivatives, by the formula).
        breaks: Jumps of f, f' and f''.
    """
    name: str
    parameters: Mapping[str, float]
    curvature: float
    curvature_at: float
    finite_curvature: float
    finite_curvature_at: float
    negative_sign: str
    positive_on: tuple[Interval, ...]
    negative_on: tuple[Interval, ...]
    negative_max: float
    negative_max_at: float
    negative_min: float
    negative_min_at: float
    negative_mean: float
    mean_range: float
    slope_left: float
    slope_right: float
    monotonicity: str
    falls_on: tuple[Interval, ...]
    zeros: tuple[float, ...]
    zero_on: tuple[Interval, ...]
    smoothness: str
    breaks: tuple[Break, ...]

    def to_dict(self) -> dict[str, float | str]:
        """Convert to a flat dictionary of numbers and texts, for a row of CSV or JSON.

        Intervals become texts such as '(-inf, -1.27846)'. A number can be inf, which `json.dumps` writes as Infinity.
        """
        plain: dict[str, float | str] = {'name': self.name, **self.parameters}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ('name', 'parameters'):
                plain[field.name] = _text(value) if isinstance(value, tuple) else value
        return plain

    def table(self) -> 'Table':
        """Format the shape as a table for a terminal."""
        from rich.table import Table
        table = Table('property', 'value', title=title(self.name, self.parameters))

        def extremum(value: float, x: float) -> str:
            return f'{value:.6g} at x = {x:.6g}'

        for label, value in {
                'greatest curvature': extremum(self.curvature, self.curvature_at),
                '  away from kinks': extremum(self.finite_curvature, self.finite_curvature_at),
                'output on x < 0': self.negative_sign,
                '  positive on': _text(self.positive_on),
                '  negative on': _text(self.negative_on),
                '  greatest': extremum(self.negative_max, self.negative_max_at),
                '  least': extremum(self.negative_min, self.negative_min_at),
                f'  mean over [{-self.mean_range:g}, 0]': f'{self.negative_mean:.6g}',
                'slope at -inf, inf': f'{self.slope_left:.6g}, {self.slope_right:.6g}',
                'monotonicity': self.monotonicity,
                '  falls on': _text(self.falls_on),
                'zeros': _text((*self.zeros, *self.zero_on)),
                'smoothness': self.smoothness,
                '  breaks': _text(self.breaks)}.items():
            table.add_row(label, value or 'none')
        return table

    def __str__(self) -> str:
        from timm_paf.activations.text import table_text
        return table_text(self.table())


def _text(items: Iterable[float | Interval | Break]) -> str:
    def one(item: float | Interval | Break) -> str:
        if isinstance(item, Break):
            return f"{('f', 'f′', 'f″')[item.order]} jumps by {item.jump:.6g} at x = {item.x:.6g}"
        return f'({item[0]:.6g}, {item[1]:.6g})' if isinstance(item, tuple) else f'{item:.6g}'
    return ', '.join(map(one, items))


def describe(activation: Activation, *, mean_range: float = MEAN_RANGE, **parameters: float) -> ActivationShape:
    """Measure the shape of an activation.

    Args:
        activation: A registered name of this package or of timm ('pssilu', 'relu'); a module, whose learned parameters
            are read and which is left as it is; or a function that autograd can differentiate twice, elementwise.
        mean_range: Length of the interval [-mean_range, 0] that the mean on negative inputs is taken over, > 0.
        **parameters: For a name or a function: its arguments, e.g. `alpha=2., beta=0.1`.

    Returns:
        The shape, computed in float64 on the CPU.

    Raises:
        ValueError: If the name is unknown, a parameter lies outside its range, the module holds one value per channel,
            or the function is not elementwise, not twice differentiable, or not finite on [-8, 8].
        TypeError: If the activation is neither of these, or a module is given with parameters.

    Source: the properties are those of arXiv 2110.05626.

    Example:
        >>> print(shape.describe('pssilu', alpha=2., beta=0.1))
    """
    if not (math.isfinite(mean_range) and mean_range > 0):
        raise ValueError(f'mean_range = {mean_range}: expected a positive finite number.')
    with torch.inference_mode(False), torch.enable_grad():
        function = elementwise(activation, parameters)
        curve = Curve(function)
        falling, values = curve.runs(1), curve.runs(0)
        negative = [run for run in values if run.left < 0]
        on_negative = {sign: intervals(negative, sign, 0.) for sign in (-1, 1)}
        down = [(spot.x, spot.x) for spot in curve.breaks if spot.order == 0 and spot.jump < 0]
        falls = tuple(sorted([*intervals(falling, -1), *down]))
        rises = any(run.sign > 0 for run in falling) or any(s.order == 0 and s.jump > 0 for s in curve.breaks)
        zeros, zero_on = curve.zeros(values)
        finite, kink = curve.greatest_curvature(), curve.first_kink()
        extent = curve.extent_on_negative(falling)
        return ActivationShape(
            name=function.name,
            parameters=function.parameters,
            curvature=finite[0] if kink is None else math.inf,
            curvature_at=finite[1] if kink is None else kink,
            finite_curvature=finite[0],
            finite_curvature_at=finite[1],
            negative_sign={(False, False): 'zero', (True, False): 'negative', (False, True): 'positive'}.get(
                (bool(on_negative[-1]), bool(on_negative[1])), 'mixed'),
            positive_on=on_negative[1],
            negative_on=on_negative[-1],
            negative_max=extent[1][0],
            negative_max_at=extent[1][1],
            negative_min=extent[0][0],
            negative_min_at=extent[0][1],
            negative_mean=curve.mean_on_negative(mean_range),
            mean_range=float(mean_range),
            slope_left=curve.slopes[0],
            slope_right=curve.slopes[1],
            monotonicity={(False, False): 'constant', (True, False): 'increasing', (False, True): 'decreasing'}.get(
                (rises, bool(falls)), 'neither'),
            falls_on=falls,
            zeros=zeros,
            zero_on=zero_on,
            smoothness=curve.smoothness(),
            breaks=curve.breaks,
        )
