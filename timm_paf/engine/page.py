"""A finished run as one HTML page: what came out, how it went, what became of the activation, with which settings."""
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from timm_paf import activation_summary, shape
from timm_paf.activations import paf_modules
from timm_paf.evaluation import RobustnessReport, html, report_sections
from timm_paf.evaluation.plots import COLOURS, figure, png

__all__ = ['training_page']

MARKERS = ('o', 's', '^', 'D')
MANY = 6  # activations that are drawn one by one

Row = Mapping[str, Any]


def training_page(
        report: RobustnessReport,
        rows: Sequence[Row],
        *,
        settings: Mapping[str, Any],
        selection: Mapping[str, Any],
        before: torch.nn.Module,
        after: torch.nn.Module,
) -> str:
    """The text of an HTML file that needs no other.

    Args:
        report: Of the best checkpoint on the test split.
        rows: The summary, one row an epoch.
        settings: Of the run.
        selection: What validation chose, as `_validation.selection` has it.
        before: The network as it was before training.
        after: The network that the report is about.
    """
    return html.page(
        f'{report.model} trained on {report.dataset}', _sections(report, rows, settings, selection, before, after),
        subtitle=' · '.join(filter(None, (settings.get('experiment'), report.created))))


def _sections(
        report: RobustnessReport, rows: Sequence[Row], settings: Mapping[str, Any], selection: Mapping[str, Any],
        before: torch.nn.Module, after: torch.nn.Module,
) -> Iterator[html.Html]:
    *measured, source = report_sections(report)
    yield from measured
    yield html.section(
        'Training', html.drawn(lambda: curves_png(rows), 'loss and accuracies over epochs'),
        *selection_lines(selection), _table(rows))
    if any(True for _ in paf_modules(after)):
        yield _activations(rows, before, after)
    yield html.section('Settings', html.table(
        [(name, _plain(value)) for name, value in settings.items()], header=('setting', 'value'), columns=' c'))
    yield source


def _activations(rows: Sequence[Row], before: torch.nn.Module, after: torch.nn.Module) -> html.Html:
    shapes = shapes_of(before, after)
    changes = [(name, *values) for name, values in numbers_of(before, after).items()]
    return html.section(
        'Activation',
        html.drawn(lambda: shape_png(shapes), 'the activation and its derivatives before and after training'),
        html.table(changes, header=('', 'before', 'after'), columns=' nn'),
        html.drawn(lambda: parameters_png(rows), 'alpha and beta over epochs'),
        html.paragraph(
            'Curvature is that of the smooth parts. The paper (arXiv 2110.05626) finds that positive output on '
            'negative inputs and high finite curvature go with robustness.', soft=True))


def selection_lines(selection: Mapping[str, Any]) -> list[html.Html]:
    """What validation chose, and how far the last epoch is behind."""
    lines, metric = [], selection['metric']
    for weights, words in (('ema', 'averaged weights'), ('raw', 'weights')):
        if weights in selection:
            best, gap = selection[weights]['best'], selection[weights]['gap']
            lines.append(html.paragraph(
                f'Best {words} on the validation split: epoch {best["epoch"] + 1}, {best[metric]:.1f} % ({metric}). '
                f'The last epoch is {gap:.1f} points below. A gap that grows with training is robust overfitting.'))
    return lines


def shapes_of(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Activations to draw: the one of a network before and after training, or of many the first ones after it."""
    first, last = (dict(paf_modules(model)) for model in (before, after))
    if len(last) == 1:
        return {'before': _scalar(next(iter(first.values()))), 'after': _scalar(next(iter(last.values())))}
    drawn = {f'{place}, after': _scalar(module) for place, module in list(last.items())[:MANY]}
    return {'before': _scalar(next(iter(first.values()))), **drawn}


def _scalar(module: Any) -> torch.nn.Module:
    """An activation with one value for each parameter: the mean over channels."""
    values = {name: float(getattr(module, name).detach().double().mean()) for name in module.parameter_specs}
    return type(module)(**values)


def numbers_of(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, tuple[str | None, str | None]]:
    """Parameters and shape of the activations, before and after, by name."""
    first, last = (
        {name: value for name, value in activation_summary(model).items() if not name.endswith('_grad')}
        for model in (before, after))
    return {name: (_number(first.get(name)), _number(last.get(name))) for name in last}


def curves_png(rows: Sequence[Row]) -> bytes:
    """Loss on the left, accuracies in percent on the right, over epochs."""
    fig, (left, right) = figure(8.8, 3.2, panels=2)
    _lines(left, rows, {'train_loss': 'training loss'})
    _lines(right, rows, {
        'train_robust': 'training, attacked', 'eval_clean': 'validation, clean', 'eval_robust': 'validation, attacked'})
    left.set(xlabel='epoch', ylabel='loss')
    right.set(xlabel='epoch', ylabel='accuracy, %')
    return png(fig)


def parameters_png(rows: Sequence[Row]) -> bytes:
    """Alpha and beta over epochs."""
    names = {
        kind: [name for name in rows[-1] if name.removeprefix('act_').rsplit('.', 1)[-1] in (kind, f'{kind}_mean')]
        for kind in ('alpha', 'beta')}
    kinds = [kind for kind in names if names[kind]]
    fig, axes = figure(4.4 * len(kinds), 3.2, panels=len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        _lines(axis, rows, {name: name.removeprefix('act_') for name in names[kind]})
        axis.set(xlabel='epoch', ylabel=kind)
    return png(fig)


def shape_png(shapes: Mapping[str, torch.nn.Module]) -> bytes:
    """Value, slope and curvature."""
    return png(shape.plot(shapes))


def _lines(axis: Any, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    for number, (name, label) in enumerate(names.items()):
        points = [(row['epoch'] + 1, row[name]) for row in rows if row.get(name) is not None]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        if points:
            axis.plot(
                *zip(*points, strict=True), label=label, color=COLOURS[number % 4], marker=MARKERS[number % 4],
                markersize=4, markevery=max(1, len(points) // 12))
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(names) > 1:
        axis.legend(frameon=False, fontsize=8)


def _table(rows: Sequence[Row]) -> html.Html:
    columns = {
        'epoch': 'epoch', 'train_loss': 'loss', 'train_robust': 'attacked, %', 'eval_clean': 'validation clean, %',
        'eval_robust': 'validation attacked, %', 'train_images_per_second': 'images/s', 'train_data_wait': 'waiting, %',
        'lr': 'learning rate'}
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    step = max(1, len(rows) // 20)
    kept = [row for row in rows if (row['epoch'] + 1) % step == 0 or row is rows[-1]]
    cells = [tuple(row['epoch'] + 1 if name == 'epoch' else _number(row.get(name)) for name in shown) for row in kept]
    return html.table(cells, header=[columns[name] for name in shown], columns='n' * len(shown))


def _number(value: float | None) -> str | None:
    return None if value is None else f'{value:.4g}'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ' '.join(map(str, value))
    return 'unset' if value is None else str(value)
