"""Figures of a report as PNG; matplotlib is loaded when one is drawn (extra `plot`)."""
import io
from collections.abc import Sequence

from timm_paf.evaluation.corruptions import CorruptionReport
from timm_paf.evaluation.curves import ClassAccuracy, RobustnessCurve
from timm_paf.evaluation.report import Accuracy

__all__ = ['COLOURS', 'class_png', 'corruption_png', 'curve_png', 'figure', 'png']

# of Okabe and Ito, made for the colour-blind; told apart by markers as well
COLOURS = _BLUE, _ORANGE, _, _ = '#0072B2', '#D55E00', '#009E73', '#CC79A7'


def curve_png(curve: RobustnessCurve) -> bytes:
    """Robust accuracy over the radius, with 95 % intervals.

    Raises:
        ImportError: If matplotlib is missing; as the other figures.
    """
    fig, (axes,) = figure(7, 3.6)
    eps = [point.eps_value for point in curve.points]
    alone = [point.alone for point in curve.points if point.alone is not None]
    if len(alone) == len(eps):
        _line(axes, eps, alone, '--', 's', _ORANGE, f'{curve.attack} at this eps alone')
    _line(axes, eps, [point.worst for point in curve.points], '-', 'o', _BLUE, 'worst of this and smaller eps')
    axes.set(xlabel=f'{curve.norm} eps', ylabel='accuracy, %', ylim=(-2, 102))
    axes.set_xticks(eps, [point.eps for point in curve.points], rotation=30 if len(eps) > 8 else 0)
    axes.legend(frameon=False)
    return png(fig)


def class_png(by_class: Sequence[ClassAccuracy]) -> bytes:
    """Clean and robust accuracy of every class."""
    fig, (axes,) = figure(7, 3.2)
    places = range(len(by_class))
    for offset, colour, label, values in (
            (-0.2, _BLUE, 'clean', [entry.clean for entry in by_class]),
            (0.2, _ORANGE, 'robust', [entry.robust for entry in by_class])):
        error = [[value.percent - 100 * value.interval()[0] for value in values],
                 [100 * value.interval()[1] - value.percent for value in values]]
        axes.bar(
            [place + offset for place in places], [value.percent for value in values], 0.4, color=colour, label=label,
            yerr=[[max(e, 0) for e in side] for side in error], ecolor='0.4', capsize=2)
    if len(by_class) <= 20:
        axes.set_xticks(list(places), [str(entry.label) for entry in by_class])
    axes.set(xlabel='class', ylabel='accuracy, %', ylim=(0, 105))
    fig.legend(frameon=False, ncols=2, loc='outside upper center')
    return png(fig)


def corruption_png(report: CorruptionReport) -> bytes:
    """A map of corruption by severity."""
    names = list(report.accuracies)
    fig, (axes,) = figure(6, 0.9 + 0.28 * len(names))
    values = [[cell.percent for cell in report.accuracies[name]] for name in names]
    axes.imshow(values, vmin=0, vmax=100, cmap='viridis', aspect='auto')
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            axes.text(column, row, f'{value:.0f}', ha='center', va='center', color='white' if value < 60 else 'black')
    axes.set_xticks(range(len(values[0])), [str(n + 1) for n in range(len(values[0]))])
    axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names])
    axes.set(xlabel='severity')
    axes.grid(False)
    return png(fig)


def figure(width: float, height: float, panels: int = 1):
    """A figure with a grid, unknown to pyplot, and the axes of its panels, side by side.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib; install it with: pip install 'timm-paf[plot]'") from error
    fig = Figure(figsize=(width, height), layout='constrained', dpi=150)
    axes = fig.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(color='0.92')
        axis.set_axisbelow(True)
    return fig, axes


def _line(axes, eps: Sequence[float], values: Sequence[Accuracy], dash, marker, colour, label: str) -> None:
    axes.plot(eps, [v.percent for v in values], dash, marker=marker, color=colour, label=label)
    low, high = zip(*(value.interval() for value in values), strict=True)
    axes.fill_between(eps, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.15, linewidth=0)


def png(fig) -> bytes:
    """A figure as the bytes of a PNG file; equal figures give equal bytes."""
    stream = io.BytesIO()
    fig.savefig(stream, format='png', metadata={'Software': None})
    return stream.getvalue()
