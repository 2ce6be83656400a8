"""The shape of an activation function: curvature, output on negative inputs, slopes, and a plot of them.

Dai, Mahloujifar and Mittal, arXiv 2110.05626, explain the robustness that an activation brings by two properties of its
graph: positive outputs on negative inputs, and a high but finite curvature. `describe` measures both and other
properties, for a registered name, a module with learned parameters, or any elementwise function.
"""
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from timm_paf.activations.curve import Break, Curve, Interval, intervals
from timm_paf.activations.elementwise import Activation, elementwise, title
from timm_paf.activations.text import table_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ['Activation', 'ActivationShape', 'Break', 'MEAN_RANGE', 'describe', 'plot']

#: The mean on negative inputs is over [-8, 0], the range of nearly all normalised pre-activations.
MEAN_RANGE = 8.


@dataclasses.dataclass(frozen=True)
class ActivationShape:
    """Result of `describe`. A place can be -inf or inf: an extremum can be a limit.

    Attributes:
        name, parameters: Registered name, or the text of the module, and its parameters.
        curvature, curvature_at: Largest |f''| and its place, the nearest to 0 if there are several; inf at a kink.
        finite_curvature, finite_curvature_at: The same away from kinks, with the one-sided limits at kinks.
        negative_sign: Sign of the output on x < 0: 'positive' (somewhere positive, nowhere negative), 'negative',
            'zero' or 'mixed'.
        positive_on, negative_on: Intervals of x < 0 with positive and with negative output.
        negative_max, negative_max_at, negative_min, negative_min_at: Supremum and infimum of the output on x < 0, and
            their places.
        negative_mean, mean_range: Mean output over -mean_range <= x <= 0, with equal weight for all x.
        slope_left, slope_right: Limits of f' at -inf and inf; infinite if it is unbounded, NaN if there is none.
        monotonicity: 'increasing' or 'decreasing' (not strictly), 'constant', or 'neither'.
        falls_on: Intervals of falling output; an interval of length 0 is a downward jump.
        zeros, zero_on: Isolated zeros (without a change of sign only at x = 0 and at breaks), and intervals of zeros.
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
        values = dict(vars(self))
        values = {'name': values.pop('name'), **values.pop('parameters'), **values}
        return {name: _text(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def table(self) -> 'Table':
        """Format the shape as a table for a terminal."""
        from rich.table import Table
        table = Table('property', 'value', title=title(self.name, self.parameters))
        row = {name: f'{value:.6g}' if isinstance(value, float) else value for name, value in self.to_dict().items()}
        for name, value in row.items():
            if name not in {'name', *self.parameters} and not name.endswith('_at'):
                place = f' at x = {row[f"{name}_at"]}' if f'{name}_at' in row else ''
                table.add_row(name.replace('_', ' '), f'{value}{place}' or 'none')
        return table

    def __str__(self) -> str:
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
        values, slopes = curve.runs(0), curve.runs(1)
        positive, negative = intervals(values, 1, 0.), intervals(values, -1, 0.)
        jumps = [spot for spot in curve.breaks if spot.order == 0]
        falls = (*intervals(slopes, -1), *((spot.x, spot.x) for spot in jumps if spot.jump < 0))
        rises = any(run.sign > 0 for run in slopes) or any(spot.jump > 0 for spot in jumps)
        finite = curve.greatest_curvature()
        kinks = [spot.x for spot in curve.breaks if spot.order < 2]
        curvature = (math.inf, min(kinks, key=abs)) if kinks else finite
        least, greatest = curve.extent_on_negative([run.left for run in slopes[1:]])
        zeros, zero_on = curve.zeros(values)
        smoothness = ('discontinuous', 'C0', 'C1', 'smooth' if function.known else 'C2+')
        return ActivationShape(
            function.name, function.parameters, *curvature, *finite,
            (('zero', 'negative'), ('positive', 'mixed'))[bool(positive)][bool(negative)], positive, negative,
            *greatest, *least, curve.mean_on_negative(mean_range), float(mean_range), *curve.slopes,
            (('constant', 'decreasing'), ('increasing', 'neither'))[rises][bool(falls)], tuple(sorted(falls)),
            zeros, zero_on, smoothness[min((spot.order for spot in curve.breaks), default=3)], curve.breaks)


def plot(
        activations: Activation | Iterable[Activation] | Mapping[str, Activation], *,
        x_range: tuple[float, float] = (-5., 5.), derivatives: Sequence[int] = (0, 1, 2),
) -> 'Figure':
    """Plot activations and their first two derivatives next to each other.

    A derivative that jumps has a gap. A kink, where the curvature is infinite, is a vertical line in the panel of f''.

    Args:
        activations: One or several activations as for `describe`, without parameters; a mapping gives them labels.
        x_range: Smallest and largest x.
        derivatives: The panels from left to right: 0 is the activation, 1 and 2 are its derivatives.

    Returns:
        A figure that pyplot does not manage; `figure.savefig('shapes.png')` writes it.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If the range or `activations` is empty; and as `describe`.
        TypeError: As `describe`.

    Example:
        >>> shape.plot({'ReLU': 'relu', 'PSSiLU, alpha 2, beta 0.1': PSSiLU(alpha=2., beta=0.1)}).savefig('shapes.png')
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("shape.plot needs matplotlib; install it with: pip install 'timm-paf[plot]'") from error
    low, high = map(float, x_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f'x_range = {x_range}: expected two finite numbers, the first smaller.')
    items: Any = [activations] if isinstance(activations, str) or callable(activations) else activations
    labels = [str(label) for label in items] if isinstance(items, Mapping) else None
    functions = [elementwise(item, {}) for item in (items.values() if isinstance(items, Mapping) else items)]
    if not functions:
        raise ValueError('activations = []: expected at least one activation.')
    figure = Figure(figsize=(11 / 3 * len(derivatives), 4.2), layout='constrained')
    panels = dict(zip(derivatives, figure.subplots(1, len(derivatives), sharex=True, squeeze=False)[0], strict=True))
    for n, function in enumerate(functions):
        with torch.inference_mode(False), torch.enable_grad():
            curve = Curve(function)
            inside = [spot for spot in curve.breaks if low < spot.x < high]
            x = np.append(curve.x[(low < curve.x) & (curve.x < high)], np.linspace(low, high, 1001))
            for left, right in (curve.sides[spot.x] for spot in inside):
                x = x[(x <= left) | (x >= right)]
            x = np.unique(np.append(x[x != 0], [spot.x for spot in inside]))
            lines = curve.derivatives(x)
        # dashes and markers distinguish the curves without colour; the colours are those of Okabe and Ito
        colour = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#E69F00', '#56B4E9')[n % 7]
        dashes = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))[n % 5]
        for spot in inside:
            lines[spot.order:, x == spot.x] = math.nan  # lines that do not jump have no gap
            if spot.order == 1 and 2 in panels:
                panels[2].axvline(spot.x, color=colour, linestyle=dashes, linewidth=1.2)
        label = labels[n] if labels else title(function.name, function.parameters)
        for order, panel in panels.items():
            panel.plot(x, lines[order], label=label, color=colour, linestyle=dashes, linewidth=1.8, markersize=5,
                       marker='os^DvPX*'[n % 8], markerfacecolor='white', markevery=(0.03 + 0.03 * (n % 4), 0.12))
    for order, panel in panels.items():
        panel.set(xlabel='x', ylabel=('f(x)', 'f′(x)', 'f″(x)')[order], xlim=(low, high), ymargin=0.1)
        for line in (panel.axhline, panel.axvline):
            line(0, color='0.6', linewidth=0.8, zorder=0)
        panel.grid(color='0.92')
    figure.legend(*panel.get_legend_handles_labels(), loc='outside lower center', frameon=False,
                  ncols=min(len(functions), 4) if len(panels) > 1 or len(functions) < 3 else 1)
    return figure
