"""report.html of a training run: the report, training curves, the activation before and after, and the settings."""
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from torch import nn

from timm_paf import activation_summary, shape
from timm_paf.activations import paf_modules
from timm_paf.engine.cli import shown_value
from timm_paf.engine.train_config import TrainConfig
from timm_paf.evaluation import RobustnessReport
from timm_paf.evaluation.page import Section, figure
from timm_paf.evaluation.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['shapes_of', 'training_page']

MAX_SHAPES, MAX_ROWS = 6, 20
COLUMNS = {  # titles, and formats of numbers
    'epoch': ('epoch', ''), 'train_loss': ('loss', '#.4g'), 'train_robust': ('training attacked, %', '.1f'),
    'eval_clean': ('validation clean, %', '.1f'), 'eval_robust': ('validation attacked, %', '.1f'),
    'train_images_per_second': ('images/s', '.0f')}
CURVES = {'loss': {'train_loss': 'training loss'}, 'accuracy, %': {
    'train_robust': 'training, attacked', 'eval_clean': 'validation, clean', 'eval_robust': 'validation, attacked'}}
SHAPE_NOTE = (
    'Finite curvature: the largest second derivative away from kinks. Negative mean and min: mean and smallest output '
    'on negative inputs. Slope left: slope at minus infinity. According to the paper (arXiv 2110.05626), positive '
    'outputs on negative inputs and high finite curvature improve robustness. The beta of PSSiLU starts at 1e-8, and '
    'a penalty (--beta-penalty) keeps it near 0.')


def training_page(
        report: RobustnessReport, rows: Sequence[Mapping[str, Any]], *, settings: Mapping[str, Any],
        selection: Mapping[str, Any], before: nn.Module, after: nn.Module,
) -> str:
    """The text of report.html, from the report on the test split, rows of summary.csv and content of selection.json.

    `before` and `after` are the networks before training and of the report. The page needs no other file.
    """
    sections = [*_training(rows, selection), *_settings(settings)]
    if any(paf_modules(after)):
        sections.insert(0, _activation(before, after, rows))
    return report.page(
        title=f'{report.model} trained on {report.dataset}', sections=sections,
        subtitle=' · '.join(filter(None, (settings.get('experiment'), report.created))))


def _activation(before: nn.Module, after: nn.Module, rows: Sequence[Mapping[str, Any]]) -> Section:
    first, last = activation_summary(before), activation_summary(after)
    path = [{'epoch': -1, **{f'act_{name}': value for name, value in first.items()}}, *rows]
    return Section(
        title='Activation', header=('', 'before', 'after'), columns='snn', note=SHAPE_NOTE, figures=[
            figure('activation and derivatives, before and after training', _shapes, shapes_of(before, after)),
            figure('alpha and beta by epoch', _plot, path, _parameters(rows[-1]))],
        rows=[(name.replace('_', ' '), first.get(name), value) for name, value in last.items()
              if not name.endswith('_grad')])


def _training(rows: Sequence[Mapping[str, Any]], selection: Mapping[str, Any]) -> list[Section]:
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    step, metric, text = max(1, len(rows) // MAX_ROWS), selection['metric'], []
    kept = [row for row in rows if (row['epoch'] + 1) % step == 0 or row is rows[-1]]
    for kind, words in (('ema', 'averaged weights (EMA)'), ('raw', 'weights')):
        if kind in selection:
            best, gap = selection[kind]['best'], selection[kind]['gap']
            text.append(
                f'Best {words}: epoch {best["epoch"] + 1}, with {best[metric]:.1f} % {metric} accuracy on the '
                f'validation split. The last epoch is {gap:.1f} percentage points lower. A gap that grows during '
                'training is a sign of robust overfitting.')
    return [
        Section(title='Training', text=text, figures=[figure('loss and accuracy by epoch', _plot, rows, CURVES)]),
        Section(title='Epochs', folded=True, header=[COLUMNS[n][0] for n in shown], columns='n' * len(shown), rows=[
            [row['epoch'] + 1, *(format(row[n], COLUMNS[n][1]) if row.get(n) is not None else '' for n in shown[1:])]
            for row in kept])]


def _settings(settings: Mapping[str, Any]) -> list[Section]:
    """Settings that differ from the defaults, and all of them."""
    rows, differing = [], []
    for field in dataclasses.fields(TrainConfig):
        if field.name in settings.keys() - {'class_names'}:
            value, default = settings[field.name], field.default
            rows.append((field.name, shown_value(value, '')))
            if value != (list(default) if isinstance(default, tuple) else default):
                differing.append((*rows[-1], shown_value(default, field.metadata['unset'])))
    return [
        Section(title='Settings that differ from the defaults', folded=True, columns='sct', rows=differing,
                header=('setting', 'value', 'default')),
        Section(title='All settings', folded=True, columns='sc', rows=rows, header=('setting', 'value'))]


def shapes_of(before: nn.Module, after: nn.Module) -> dict[str, nn.Module]:
    """Activations to plot by label, with means over channels: the first before training, up to six after training."""
    last = list(paf_modules(after))
    shapes: dict[str, Any] = {'before': next(iter(paf_modules(before)))[1]}
    shapes |= {'after' if len(last) == 1 else f'{place}, after': module for place, module in last[:MAX_SHAPES]}
    return {
        label: type(paf)(**{n: float(getattr(paf, n).detach().double().mean()) for n in paf.parameter_specs})
        for label, paf in shapes.items()}


def _parameters(columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Columns of alpha and of beta with their labels."""
    panels: dict[str, dict[str, str]] = {}
    for name in columns:
        label = name.removeprefix('act_')
        kind = label.rsplit('.', 1)[-1].removesuffix('_mean')
        if kind in ('alpha', 'beta'):
            panels.setdefault(kind, {})[name] = label
    return dict(sorted(panels.items()))


def _shapes(shapes: Mapping[str, nn.Module]) -> list['Figure']:
    return [shape.plot(shapes, derivatives=[order]) for order in range(3)]


def _plot(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]]) -> list['Figure']:
    """Columns of the summary by epoch, in one figure per label of the y axis; non-finite values are left out."""
    figures = []
    for ylabel, names in panels.items():
        drawn, (axes,) = new_figure(4.4, 3.2)
        for (name, label), colour, marker in zip(names.items(), cycle(COLOURS), cycle('os^D')):
            values = {row['epoch'] + 1: row.get(name) for row in rows}
            points = [(epoch, value) for epoch, value in values.items() if value is not None and math.isfinite(value)]
            if points:
                every = max(1, len(points) // 12)
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, markevery=every, label=label)
        axes.locator_params(axis='x', integer=True)
        axes.set(xlabel='epoch', ylabel=ylabel)
        if len(names) > 1:
            drawn.legend(frameon=False, loc='outside upper center')
        figures.append(drawn)
    return figures
