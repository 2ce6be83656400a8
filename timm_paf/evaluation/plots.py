"""Figures of the report page; need matplotlib (`pip install 'timm-paf[plot]'`), else ImportError."""
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.corruptions import CorruptionReport
from timm_paf.evaluation.curves import ClassAccuracy, RobustnessCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['COLOURS', 'new_figure', 'plot_classes', 'plot_corruptions', 'plot_curve']

# the palette of Okabe and Ito, for colour-blind readers; lines differ in their markers as well
COLOURS = _BLUE, _ORANGE, _, _ = '#0072B2', '#D55E00', '#009E73', '#CC79A7'


def plot_curve(curve: RobustnessCurve) -> 'Figure':
    """Robust accuracy by eps, with 95 % intervals."""
    figure, (axes,) = new_figure(4.6, 3.8)
    eps = [point.eps_value for point in curve.points]
    for style, colour, label, name in (
            ('s--', _ORANGE, f'{curve.attack} at this eps only', 'alone'),
            ('o-', _BLUE, 'at this or a smaller eps', 'worst')):
        percents, ends = _percents([getattr(point, name) for point in curve.points])
        axes.plot(eps, percents, style, color=colour, label=label)
        axes.fill_between(eps, *ends, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=f'{curve.norm} eps', ylabel='accuracy, %', ylim=(-2, 102))
    axes.set_xticks(eps, [point.eps for point in curve.points], rotation=40 if len(eps) > 5 else 0)
    figure.legend(frameon=False, loc='outside upper center')
    return figure


def plot_classes(by_class: Sequence[ClassAccuracy]) -> 'Figure':
    """Clean and robust accuracy per class, with 95 % intervals."""
    figure, (axes,) = new_figure(4.6, 3.2)
    places = np.arange(len(by_class))
    for offset, colour, label in ((-0.2, _BLUE, 'clean'), (0.2, _ORANGE, 'robust')):
        percents, ends = _percents([getattr(entry, label) for entry in by_class])
        axes.bar(
            places + offset, percents, 0.4, color=colour, label=label, yerr=abs(ends - percents), ecolor='0.4',
            capsize=2)
    if len(by_class) <= 20:
        axes.set_xticks(places, [str(entry.label) for entry in by_class])
    axes.set(xlabel='class', ylabel='accuracy, %', ylim=(0, 105))
    figure.legend(frameon=False, ncols=2, loc='outside upper center')
    return figure


def plot_corruptions(report: CorruptionReport) -> 'Figure':
    """Accuracy by corruption and severity, as a map."""
    names = list(report.accuracies)
    values = np.array([[cell.percent for cell in report.accuracies[name]] for name in names])
    figure, (axes,) = new_figure(4.6, 0.9 + 0.28 * len(names))
    axes.imshow(values, vmin=0, vmax=100, cmap='viridis', aspect='auto')
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f'{value:.0f}', ha='center', va='center', color='white' if value < 60 else '0.05')
    axes.set_xticks(range(values.shape[1]), [str(1 + severity) for severity in range(values.shape[1])])
    axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names])
    axes.set(xlabel='severity')
    axes.grid(False)
    return figure


def new_figure(width: float, height: float, panels: int = 1) -> tuple['Figure', Sequence['Axes']]:
    """A figure of this size in inches, unknown to pyplot, and the axes of its panels from left to right."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'timm-paf[plot]'") from error
    figure = Figure(figsize=(width, height), layout='constrained')
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes in all_axes:
        axes.grid(color='0.92')
        axes.set_axisbelow(True)
    return figure, all_axes


def _percents(accuracies: Sequence[Accuracy]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (N,), and lower and upper ends of their 95 % intervals (2, N), in percent."""
    ends = np.transpose([accuracy.interval() for accuracy in accuracies])
    return np.array([accuracy.percent for accuracy in accuracies]), 100 * ends
