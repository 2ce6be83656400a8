"""report.html of a training run: the report, training curves, the activation before and after, and the settings."""
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from timm_paf import activation_summary, shape
from timm_paf.activations import paf_modules
from timm_paf.evaluation import RobustnessReport
from timm_paf.evaluation.page import Section, figure
from timm_paf.evaluation.plots import COLOURS, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['shapes_of', 'training_page']

MAX_SHAPES, MAX_ROWS = 6, 20
MARKERS = ('o', 's', '^', 'D')
COLUMNS = {
    'epoch': 'epoch', 'train_loss': 'loss', 'train_robust': 'training, attacked, %',
    'eval_clean': 'validation, clean, %', 'eval_robust': 'validation, attacked, %',
    'train_images_per_second': 'images/s', 'train_data_wait': 'waiting for data, %', 'lr': 'learning rate'}
SHAPE_NOTE = (
    'Finite curvature: the largest curvature away from kinks. Negative mean and min: mean and smallest output on '
    'negative inputs. Slope left: slope at minus infinity. According to the paper (arXiv 2110.05626), positive outputs '
    'on negative inputs and high finite curvature improve robustness.')

Row = Mapping[str, Any]


def training_page(
        report: RobustnessReport,
        rows: Sequence[Row],
        *,
        settings: Mapping[str, Any],
        selection: Mapping[str, Any],
        before: nn.Module,
        after: nn.Module,
) -> str:
    """The text of report.html, a page that needs no other file.

    Args:
        report: Report of the best checkpoint on the test split.
        rows: Rows of summary.csv, one per epoch.
        settings: Settings of the run.
        selection: Content of selection.json.
        before: The network before training.
        after: The network of the report.
    """
    settings_section = Section(
        title='Settings', header=('setting', 'value'), columns='sc',
        rows=[(name, _plain(value)) for name, value in settings.items()])
    activation = [_activation(rows, before, after)] if any(paf_modules(after)) else []
    return report.page(
        title=f'{report.model} trained on {report.dataset}',
        subtitle=' · '.join(filter(None, (settings.get('experiment'), report.created))),
        sections=[_training(rows, selection), *activation, settings_section])


def _training(rows: Sequence[Row], selection: Mapping[str, Any]) -> Section:
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    step = max(1, len(rows) // MAX_ROWS)
    kept = [row for row in rows if (row['epoch'] + 1) % step == 0 or row is rows[-1]]
    metric, text = selection['metric'], []
    for kind, words in (('ema', 'averaged weights (EMA)'), ('raw', 'weights')):
        if kind in selection:
            best, gap = selection[kind]['best'], selection[kind]['gap']
            text.append(
                f'Best {words}: epoch {best["epoch"] + 1}, with {best[metric]:.1f} % {metric} accuracy on the '
                f'validation split. The last epoch is {gap:.1f} percentage points lower. A gap that grows during '
                'training is a sign of robust overfitting.')
    return Section(
        title='Training', text=text, figures=[figure('loss and accuracy by epoch', _curves_png, rows)],
        header=[COLUMNS[name] for name in shown], columns='n' * len(shown),
        rows=[[row['epoch'] + 1, *(_number(row.get(name)) for name in shown[1:])] for row in kept])


def _activation(rows: Sequence[Row], before: nn.Module, after: nn.Module) -> Section:
    first, last = activation_summary(before), activation_summary(after)
    return Section(
        title='Activation', figures=[
            figure('the activation and its derivatives, before and after training',
                   lambda: png(shape.plot(shapes_of(before, after)))),
            figure('alpha and beta by epoch', _parameters_png, rows)],
        header=('', 'before', 'after'), columns='snn', note=SHAPE_NOTE,
        rows=[(name.replace('_', ' '), _number(first.get(name)), _number(value))
              for name, value in last.items() if not name.endswith('_grad')])


def shapes_of(before: nn.Module, after: nn.Module) -> dict[str, nn.Module]:
    """Activations to plot, by label: the first one before training, and up to six after training."""
    first, last = dict(paf_modules(before)), dict(paf_modules(after))
    after_training = {
        'after' if len(last) == 1 else f'{place}, after': _scalar(module)
        for place, module in list(last.items())[:MAX_SHAPES]}
    return {'before': _scalar(next(iter(first.values()))), **after_training}


def _scalar(module: Any) -> nn.Module:
    """A copy of an activation with one value for each parameter: the mean over channels."""
    values = {name: float(getattr(module, name).detach().double().mean()) for name in module.parameter_specs}
    return type(module)(**values)


def _curves_png(rows: Sequence[Row]) -> bytes:
    drawn, (left, right) = new_figure(8.8, 3.2, panels=2)
    _lines(left, rows, {'train_loss': 'training loss'}, ylabel='loss')
    _lines(right, rows, {
        'train_robust': 'training, attacked', 'eval_clean': 'validation, clean',
        'eval_robust': 'validation, attacked'}, ylabel='accuracy, %')
    return png(drawn)


def _parameters_png(rows: Sequence[Row]) -> bytes:
    lines: dict[str, dict[str, str]] = {'alpha': {}, 'beta': {}}
    for name in rows[-1]:
        kind = name.removeprefix('act_').rsplit('.', 1)[-1].removesuffix('_mean')
        if kind in lines:
            lines[kind][name] = name.removeprefix('act_')
    kinds = [kind for kind in lines if lines[kind]]
    drawn, all_axes = new_figure(4.4 * len(kinds), 3.2, panels=len(kinds))
    for axes, kind in zip(all_axes, kinds, strict=True):
        _lines(axes, rows, lines[kind], ylabel=kind)
    return png(drawn)


def _lines(axes: 'Axes', rows: Sequence[Row], names: Mapping[str, str], *, ylabel: str) -> None:
    """Draw columns of the summary by epoch; missing and infinite values are left out."""
    for number, (name, label) in enumerate(names.items()):
        values = {row['epoch'] + 1: row[name] for row in rows if row.get(name) is not None}
        finite = {epoch: value for epoch, value in values.items() if math.isfinite(value)}
        if finite:
            axes.plot(
                list(finite), list(finite.values()), label=label, color=COLOURS[number % 4],
                marker=MARKERS[number % 4], markersize=4, markevery=max(1, len(finite) // 12))
    axes.locator_params(axis='x', integer=True)
    axes.set(xlabel='epoch', ylabel=ylabel)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8)


def _number(value: float | None) -> str | None:
    return None if value is None else f'{value:.4g}'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ' '.join(map(str, value))
    return 'unset' if value is None else str(value)
