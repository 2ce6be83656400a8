"""Plot of activations and their derivatives; matplotlib is imported at the first plot."""
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from timm_paf.activations.curve import Curve
from timm_paf.activations.elementwise import Activation, Elementwise, elementwise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['plot']


_PANELS = ('$f(x)$', "$f'(x)$", "$f''(x)$")
# dashes and markers distinguish the curves without colour; the colours are those of Okabe and Ito
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#E69F00', '#56B4E9')
_DASHES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


def plot(
        activations: Activation | Iterable[Activation] | Mapping[str, Activation],
        *,
        x_range: tuple[float, float] = (-5., 5.),
) -> 'Figure':
    """Plot activations and their first two derivatives next to each other.

    A derivative that jumps has a gap. A kink, where the curvature is infinite, is shown by the curve's marker, filled,
    at the upper edge of the panel of f''.

    Args:
        activations: One or several activations as for `describe`, without parameters; a mapping gives them labels.
        x_range: Smallest and largest x.

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
    with torch.inference_mode(False), torch.enable_grad():
        drawn = [(label, *_lines(function, low, high)) for label, function in _labelled(activations)]
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    panels = figure.subplots(1, 3, sharex=True)
    kinked = 0
    for n, (label, x, lines, kinks) in enumerate(drawn):
        style = {
            'color': _COLOURS[n % len(_COLOURS)], 'linestyle': _DASHES[n % len(_DASHES)], 'linewidth': 1.8,
            'marker': _MARKERS[n % len(_MARKERS)], 'markersize': 5, 'markerfacecolor': 'white'}
        # markers at equal distances in x; those of the next curve are between them
        spots = torch.linspace(low, high, 9, dtype=torch.float64, device='cpu')[:-1]
        places = torch.searchsorted(x, spots + (high - low) / 8 * (n % 4 + 0.5) / 4).clamp(max=len(x) - 1)
        for panel, line in zip(panels, lines, strict=True):
            panel.plot(x.tolist(), line.tolist(), label=label, markevery=places.tolist(), **style)
        panels[2].plot(
            kinks, [0.97 - 0.045 * kinked] * len(kinks), linestyle='none', marker=style['marker'], markersize=7,
            color=style['color'], transform=panels[2].get_xaxis_transform(), zorder=3)
        kinked += bool(kinks)
    for panel, label in zip(panels, _PANELS, strict=True):
        panel.set(xlabel='$x$', ylabel=label, xlim=(low, high))
        panel.axhline(0, color='0.6', linewidth=0.8, zorder=0)
        panel.axvline(0, color='0.6', linewidth=0.8, zorder=0)
        panel.grid(color='0.92')
        panel.margins(y=0.1)
    bottom, top = panels[2].get_ylim()  # space for the markers of kinks above the curves
    panels[2].set_ylim(bottom, bottom + (top - bottom) / (1 - 0.045 * min(kinked, 15)))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(len(labels), 4), frameon=False)
    return figure


def _labelled(
        activations: Activation | Iterable[Activation] | Mapping[str, Activation],
) -> list[tuple[str, Elementwise]]:
    if isinstance(activations, Mapping):
        labelled = [(str(label), elementwise(item, {})) for label, item in activations.items()]
    else:
        items: Any = [activations] if isinstance(activations, str) or callable(activations) else activations
        functions = [elementwise(item, {}) for item in items]
        labelled = [(function.title, function) for function in functions]
    if not labelled:
        raise ValueError('activations is empty: expected at least one.')
    return labelled


def _lines(function: Elementwise, low: float, high: float) -> tuple[Tensor, Tensor, list[float]]:
    """X of shape (N,), f, f' and f'' (3, N) with NaN at a break between its two sides, and the places of kinks."""
    curve = Curve(function)
    x = torch.linspace(low, high, 1001, dtype=torch.float64, device='cpu')
    x = torch.cat([x, curve.x[(curve.x > low) & (curve.x < high)]])
    inside = {spot.x: spot.order for spot in curve.breaks if low < spot.x < high}
    for at in inside:  # no point on the break itself, where autograd returns any value
        left, right = curve.sides[at]
        x = torch.cat([x[(x < left) | (x > right)], torch.tensor([left, right], dtype=torch.float64, device='cpu')])
    x = x.unique()
    x = x[x != 0]
    lines = curve.derivatives(x)
    for at, order in inside.items():
        gap = int(torch.searchsorted(x, torch.tensor(at, dtype=torch.float64, device='cpu')))
        x = torch.cat([x[:gap], torch.tensor([at], dtype=torch.float64, device='cpu'), x[gap:]])
        column = torch.full((3, 1), math.nan, dtype=torch.float64, device='cpu')
        column[:order] = lines[:order, gap:gap + 1]  # lines that do not jump have no gap
        lines = torch.cat([lines[:, :gap], column, lines[:, gap:]], dim=1)
    return x, lines, [at for at, order in inside.items() if order == 1]
