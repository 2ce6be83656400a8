"""report.html of a sweep: accuracies, differences to ReLU and SiLU, and robustness over parameters and shape."""
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_paf.activations import ACTIVATIONS, shape
from timm_paf.engine.fields import assignments
from timm_paf.engine.progress import duration
from timm_paf.engine.sweep_table import ATTACKS, VERSIONS, read_path
from timm_paf.evaluation.page import Section, figure, render
from timm_paf.evaluation.plots import COLOURS, new_figure
from timm_paf.evaluation.statistics import mean_interval, rank_correlation, runs_needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Group', 'groups_of', 'paired_differences', 'sweep_page']

Row = Mapping[str, Any]
REFERENCES = ('relu', 'silu')
TITLES = {'clean': 'clean', 'pgd': 'PGD', 'autoattack': 'AutoAttack'}
PROPERTIES = {
    'finite_curvature': 'greatest curvature', 'negative_mean': 'mean output, x < 0',
    'negative_max': 'largest output, x < 0'}
MAX_SHAPES = 7


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that differ only in their seed: rows of their best and last checkpoints by seed."""
    activation: str
    learned: bool
    given: str
    options: tuple[tuple[str, str], ...]
    best: dict[int, Row] = dataclasses.field(default_factory=dict)
    last: dict[int, Row] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> str:
        """How alpha and beta were chosen, in words."""
        if self.given:
            return f'{"learned from" if self.learned else "fixed"} {self.given}'
        return 'learned' if self.learned else ''

    @property
    def option_text(self) -> str:
        """The options in words."""
        return ', '.join(f'{name.replace("_", " ")} {value}' for name, value in self.options)

    def label(self, *, options: bool = True) -> str:
        """The group in one line."""
        return ', '.join(filter(None, (self.activation, self.parameters, self.option_text if options else '')))

    def values(self, column: str, checkpoint: str = 'best') -> dict[int, float]:
        """A column by seed, without empty cells."""
        rows = self.best if checkpoint == 'best' else self.last
        return {seed: row[column] for seed, row in rows.items() if row.get(column) is not None}

    def mean(self, column: str, checkpoint: str = 'best') -> float:
        """Mean of a column over the seeds."""
        values = list(self.values(column, checkpoint).values())
        return sum(values) / len(values) if values else math.nan


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """The groups of the rows of results.csv."""
    groups: dict[Any, Group] = {}
    for row in rows:
        names = list(row)
        options = tuple((name, row[name]) for name in names[names.index('seed') + 1:names.index('checkpoint')])
        key = row['activation'], row['learned'], row['given'], options
        group = groups.setdefault(key, Group(*key))
        (group.best if row['checkpoint'] == 'best' else group.last)[row['seed']] = row
    return list(groups.values())


def paired_differences(group: Group, groups: Sequence[Group], reference: str, column: str) -> dict[int, float]:
    """Differences by seed to the activation `reference` with the same options, in a column of the best checkpoints.

    An option that the reference does not name, such as the sharing of parameters that it lacks, may differ.
    """
    fitting = [g for g in groups if g.activation == reference and set(g.options) <= set(group.options)]
    if not fitting or group.activation == reference:
        return {}
    mine, other = group.values(column), max(fitting, key=lambda g: len(g.options)).values(column)
    return {seed: mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())}


def sweep_page(rows: Sequence[Row], output: Path, *, title: str, states: Mapping[str, str] | None = None) -> str:
    """The text of report.html, which needs no other file.

    Args:
        rows: Rows of results.csv, at least one.
        output: Folder of the sweep.
        title: Heading.
        states: State of each cell, to name those that are not done.
    """
    attacks = [attack for attack in ATTACKS if all(attack in row for row in rows)]
    robust = attacks[-1]
    groups = sorted(groups_of(rows), key=lambda group: -group.mean(robust))
    sets: dict[str, list[Group]] = defaultdict(list)  # by options
    for group in groups:
        sets[group.option_text].append(group)
    sections = [
        *(_accuracies(members, attacks) for members in sets.values()),
        *(_differences(members, groups, robust) for members in sets.values()), _over_parameters(groups, robust),
        _over_shape(groups, robust), *(_learned(members, output) for members in sets.values()),
        _missing(states or {}, output), _facts(rows)]
    row = rows[0]
    return render(report=None, title=title, sections=list(filter(None, sections)), subtitle=' · '.join((
        f'{len({row["cell"] for row in rows})} runs', row['dataset'], f'{row["norm"]} eps {row["eps"]}',
        max(row['created'] for row in rows))))


def _accuracies(groups: Sequence[Group], attacks: Sequence[str]) -> Section:
    robust = attacks[-1]
    rows: list[list[Any]] = []
    for group in groups:
        mean, low, high, _ = mean_interval(list(group.values(robust).values()))
        rows.append([
            group.label(options=False), len(group.best), *(f'{group.mean(attack):.1f}' for attack in attacks),
            _range(low, high), f'{group.mean(robust, "last"):.1f}', f'{mean - group.mean(robust, "last"):.1f}',
            *(_some(group.mean(name)) for name in ('alpha', 'beta'))])
    return Section(
        title=_title('Accuracy', groups[0]),
        figures=[figure('robust accuracy of each activation', _plot_groups, groups, robust)],
        header=['activation', 'seeds', *(f'{TITLES[attack]}, %' for attack in attacks), '95 % interval', 'last, %',
                'gap', 'alpha', 'beta'],
        columns='ln' + 'n' * len(attacks) + 'nnnnn', rows=rows,
        note='Means over seeds, of the checkpoint with the best validation accuracy. The interval is the 95 % t '
             'interval of the mean over seeds of the accuracy in front of it; last is that accuracy at the last epoch, '
             'and gap is how much lower it is, in percentage points. results.csv has counts and Wilson intervals of '
             'each run.')


def _differences(members: Sequence[Group], groups: Sequence[Group], robust: str) -> Section | None:
    rows: list[list[Any]] = []
    for reference in REFERENCES:
        for group in members:
            found = paired_differences(group, groups, reference, robust)
            if found:
                mean, low, high, deviation = mean_interval(list(found.values()))
                clean = mean_interval(list(paired_differences(group, groups, reference, 'clean').values()))
                needed = runs_needed(deviation, 1.) if math.isfinite(deviation) else None
                rows.append([
                    group.label(options=False), reference, len(found), f'{mean:+.2f}', _range(low, high, '+.2f'),
                    needed, f'{clean[0]:+.2f}', _range(*clean[1:3], '+.2f')])
    return Section(
        title=_title('Differences to ReLU and SiLU', members[0]), header=[
            'activation', 'minus', 'pairs', TITLES[robust], '95 % interval', 'seeds for ±1', 'clean', '95 % interval'],
        columns='llnnnnnn', rows=rows,
        note='Differences between two runs with the same seed and options, in percentage points. The intervals are '
             '95 % t intervals over the pairs. They cover the chance in training, not the choice of test images, and '
             'are not corrected for the number of comparisons. Seeds for ±1: number of pairs whose interval would have '
             'one point to each side, with the spread that was measured.') if rows else None


def _over_parameters(groups: Sequence[Group], robust: str) -> Section | None:
    by_activation: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.given and not group.learned:
            by_activation[group.activation].append(group)
    items = sorted(by_activation.items())
    return Section(
        title='Robustness over the parameter', text=[
            'Each point is a run whose parameters are fixed. The line joins the means over seeds; the dashed line is '
            'the mean of ReLU.'],
        figures=[figure('robust accuracy over fixed parameters', _plot_parameters, dict(items[i:i + 2]), groups, robust)
                 for i in range(0, len(items), 2)]) if items else None


def _over_shape(groups: Sequence[Group], robust: str) -> Section:
    sets: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        sets[group.option_text].append(group)
        if group.given and not group.learned:
            sets[', '.join(filter(None, (f'{group.activation}, fixed', group.option_text)))].append(group)
    rows: list[list[Any]] = []
    for label, members in sorted(sets.items(), key=lambda item: -len(item[1])):
        for name, words in PROPERTIES.items():
            points = [(g.mean(name), g.mean(robust)) for g in members if not math.isnan(g.mean(name))]
            correlation, p = rank_correlation(*zip(*points, strict=True)) if points else (math.nan, math.nan)
            if not math.isnan(correlation):
                rows.append([label or 'all', words, len(points), f'{correlation:+.2f}', f'{p:.3g}'])
    return Section(
        title='Robustness over the shape', figures=[figure(
            'robust accuracy over curvature and over output on negative inputs', _plot_shape, groups, robust)],
        text=['Empty markers: the parameters are fixed. Filled ones: they are learned, or there are none.'],
        header=['activations', 'property', 'points', 'rank correlation', 'p'], columns='ssnnn', rows=rows,
        note='Each point is the mean over seeds. Greatest curvature: away from kinks. Mean output: over [-8, 0]. Rank '
             'correlation: Spearman; p: from permutations, two-sided, not corrected for the number of rows. According '
             'to the paper (arXiv 2110.05626), high finite curvature and positive outputs on negative inputs improve '
             'robustness.')


def _learned(groups: Sequence[Group], output: Path) -> Section | None:
    learned = [group for group in groups if group.learned]
    shapes = {}
    for group in learned[:MAX_SHAPES]:
        kind = ACTIVATIONS[group.activation]
        values: dict[str, Any] = {
            name: spec.clamp(group.mean(name)) for name, spec in kind.parameter_specs.items()
            if math.isfinite(group.mean(name))}
        shapes[group.label(options=False)] = kind(**values)
    return Section(
        title=_title('Learned parameters', groups[0]), header=['activation', 'alpha', 'beta', *PROPERTIES.values()],
        figures=[figure('alpha and beta by epoch', _plot_paths, learned, output),
                 figure('learned activations and their derivatives', shape.plot, shapes)],
        columns='lnnnnn', rows=[[
            group.label(options=False), *(_some(group.mean(name)) for name in ('alpha', 'beta', *PROPERTIES))]
            for group in learned],
        note=f'Means over seeds, of the best checkpoint. The shapes are those of the first {MAX_SHAPES} rows.',
    ) if learned else None


def _missing(states: Mapping[str, str], output: Path) -> Section | None:
    rows = []
    for name, state in states.items():
        if state != 'done':
            error = output / name / 'error.txt'
            rows.append([name, state, error.read_text().strip() if error.exists() else ''])
    return Section(
        title='Cells without a result', header=['cell', 'state', 'error'], columns='cst', rows=rows) if rows else None


def _facts(rows: Sequence[Row]) -> Section:
    cells = {row['cell']: row for row in rows}
    columns = {'dataset': 'data set', 'model': 'models', 'norm': 'norm', 'eps': 'eps', 'device': 'device',
               'machine': 'machine', 'threads': 'threads per run', **{name: name for name in VERSIONS}}
    return Section(title='Runs', header=['', ''], columns='st', rows=[
        ['runs', len(cells)], ['time of all runs', duration(sum(row['seconds'] for row in cells.values()))],
        *([words, ', '.join(sorted({str(row[name]) for row in rows if row.get(name) is not None}))]
          for name, words in columns.items())])


def _title(text: str, group: Group) -> str:
    return ', '.join(filter(None, (text, group.option_text)))


def _some(value: float) -> str | None:
    return None if math.isnan(value) else f'{value:.3g}'


def _range(low: float, high: float, style: str = '.1f') -> str | None:
    return None if math.isnan(low) else f'{low:{style}} to {high:{style}}'


def _style(groups: Iterable[Group]) -> Callable[[str], dict[str, Any]]:
    """Colour and marker of each activation."""
    names = sorted({group.activation for group in groups})
    styles = dict(zip(names, zip(cycle((*COLOURS, '#000000')), cycle('os^DvP*')), strict=False))
    return lambda name: dict(color=styles[name][0], marker=styles[name][1])


def _plot_groups(groups: Sequence[Group], robust: str) -> 'Figure':
    """Runs as dots, best above last checkpoint, one line per group."""
    drawn, (axes,) = new_figure(9, 0.9 + 0.24 * len(groups))
    for place, group in enumerate(groups):
        for checkpoint, colour, marker in (('last', COLOURS[1], 'x'), ('best', COLOURS[0], 'o')):
            values = list(group.values(robust, checkpoint).values())
            axes.plot(values, [place] * len(values), marker, color=colour, ms=5, alpha=0.8,
                      label=f'{checkpoint} checkpoint' if not place else None)
        axes.plot(group.mean(robust), place, '|', color='black', ms=12, label='mean, best' if not place else None)
    axes.set_yticks(range(len(groups)), [group.label(options=False) for group in groups], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f'{TITLES[robust]} accuracy, %')
    drawn.legend(frameon=False, ncols=3, loc='outside upper center')
    return drawn


def _plot_parameters(items: Mapping[str, Sequence[Group]], groups: Sequence[Group], robust: str) -> 'Figure':
    drawn, all_axes = new_figure(9, 3.4, panels=2)
    reference = [group.mean(robust) for group in groups if group.activation == 'relu']
    for axes, (activation, members) in zip(all_axes, items.items(), strict=False):
        lines: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        varied = next((name for name in ('alpha', 'beta') if len({g.mean(name) for g in members}) > 1), 'alpha')
        for group in members:
            lines[group.option_text].append((group.mean(varied), group))
        for (label, line), colour, marker in zip(sorted(lines.items()), cycle(COLOURS), cycle('os^D')):
            line.sort(key=lambda item: item[0])
            for x, group in line:
                values = list(group.values(robust).values())
                axes.plot([x] * len(values), values, marker, color=colour, ms=4, alpha=0.5)
            axes.plot([x for x, _ in line], [g.mean(robust) for _, g in line], color=colour, label=label or None)
        if reference:
            axes.axhline(float(np.mean(reference)), color='0.4', linestyle='--', linewidth=1)
        axes.set(title=activation, xlabel=f'{varied}, fixed', ylabel=f'{TITLES[robust]} accuracy, %')
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    for axes in all_axes[len(items):]:
        axes.set_visible(False)
    return drawn


def _plot_shape(groups: Sequence[Group], robust: str) -> 'Figure':
    drawn, all_axes = new_figure(9, 4.2, panels=2)
    style = _style(groups)
    for axes, name in zip(all_axes, ('finite_curvature', 'negative_mean'), strict=True):
        labelled = set()
        for group in groups:
            label = None if group.activation in labelled else group.activation
            labelled.add(group.activation)
            filled: dict[str, Any] = {} if group.learned or not group.given else {'markerfacecolor': 'white'}
            axes.plot(group.mean(name), group.mean(robust), linestyle='', ms=6, label=label, **style(group.activation),
                      **filled)
        axes.set(xlabel=PROPERTIES[name], ylabel=f'{TITLES[robust]} accuracy, %')
    labels = all_axes[0].get_legend_handles_labels()
    drawn.legend(*labels, frameon=False, ncols=6, loc='outside lower center', fontsize=8)
    return drawn


def _plot_paths(groups: Sequence[Group], output: Path) -> 'Figure':
    """Paths of alpha and beta over the epochs of each learned run; epoch 0 is before training."""
    names = [name for name in ('alpha', 'beta') if any(group.values(name) for group in groups)] or ['alpha']
    drawn, all_axes = new_figure(4.5 * len(names), 3.8, panels=len(names))
    style = _style(groups)
    for axes, name in zip(all_axes, names, strict=True):
        labelled = set()
        for group in groups:
            if name not in ACTIVATIONS[group.activation].parameter_specs:
                continue
            start = getattr(ACTIVATIONS[group.activation](**assignments(tuple(group.given.split()), 'given')), name)
            for row in group.best.values():
                path = [(0, float(start.detach())), *(
                    (point['epoch'] + 1, point[name]) for point in read_path(output, row['cell']) if name in point)]
                label = None if group.activation in labelled else group.activation
                labelled.add(group.activation)
                axes.plot(*zip(*path, strict=True), ms=3, linewidth=1, label=label, **style(group.activation))
        axes.locator_params(axis='x', integer=True)
        axes.set(xlabel='epoch', ylabel=name)
        axes.legend(frameon=False, fontsize=8)
    return drawn
