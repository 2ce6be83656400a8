"""report.html of a sweep: accuracies, differences to ReLU and SiLU, and robustness over parameters and shape."""
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_paf.activations import ACTIVATIONS, shape
from timm_paf.engine.progress import duration
from timm_paf.engine.sweep_plots import fixed_groups, plot_groups, plot_parameters, plot_paths, plot_shape
from timm_paf.engine.sweep_table import ATTACKS, PROPERTIES, VERSIONS, Group, groups_of, paired_differences
from timm_paf.evaluation.page import Section, figure, render
from timm_paf.evaluation.statistics import mean_interval, rank_correlation, runs_needed

__all__ = ['sweep_page', 'sweep_sections']

Row = Mapping[str, Any]
REFERENCES = ('relu', 'silu')
MAX_SHAPES = 7


def sweep_page(rows: Sequence[Row], output: Path, *, title: str, states: Mapping[str, str] | None = None) -> str:
    """The text of report.html, which needs no other file.

    Args:
        rows: Rows of results.csv, at least one.
        output: Folder of the sweep.
        title: Heading.
        states: State of each cell, to name those that are not done.
    """
    sections = [*sweep_sections(groups_of(rows, output)), _missing(states or {}, output), _facts(rows)]
    row = rows[0]
    return render(report=None, title=title, sections=list(filter(None, sections)), subtitle=' · '.join((
        f'{len({row["cell"] for row in rows})} runs', row['dataset'], f'{row["norm"]} eps {row["eps"]}',
        max(row['created'] for row in rows)[:10])))


def sweep_sections(groups: Sequence[Group]) -> list[Section]:
    """Sections on accuracy, differences, parameters and shape."""
    attacks = [attack for attack in ATTACKS if any(group.values(attack) for group in groups)]
    robust = max((attack for attack in attacks[1:] if all(group.values(attack) for group in groups)),
                 key=lambda attack: (groups[0].mean(f'{attack}_images'), attack == 'autoattack'))
    groups = sorted(groups, key=lambda group: -group.mean(robust))
    by_options: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_options[group.option_text].append(group)
    sets = [by_options[options] for options in sorted(by_options)]  # those without options first
    return list(filter(None, [
        *(_accuracies(members, attacks, robust) for members in sets),
        *(_differences(members, groups, attacks, robust) for members in sets),
        _over_parameters(groups, robust), _over_shape(groups, robust), *map(_learned, sets)]))


def _accuracies(groups: Sequence[Group], attacks: Sequence[str], robust: str) -> Section:
    two = any(map(_has_two, groups))
    rows: list[list[Any]] = []
    for group in groups:
        mean, low, high, _ = mean_interval(list(group.values(robust).values()))
        last = group.mean(robust, 'last')
        rows.append([
            group.label(options=False), len(group.best), *(_some(group.mean(attack), '.2f') for attack in attacks),
            _range(low, high, '.2f'), *((f'{last:.2f}', f'{mean - last:.2f}') if two else ()),
            *(_some(group.mean(name)) for name in ('alpha', 'beta'))])
    return Section(
        title=_title('Accuracy', groups[0]),
        figures=[figure('robust accuracy of each activation', plot_groups, groups, robust, two)],
        header=['activation', 'seeds', *(f'{ATTACKS[attack]}, %' for attack in attacks),
                f'{ATTACKS[robust]}, 95 % interval', *(('last, %', 'gap') if two else ()), 'alpha', 'beta'],
        columns='ln' + 'n' * (len(attacks) + (5 if two else 3)), rows=rows,
        note='Means over seeds, of the checkpoint with the best validation accuracy. The interval is the 95 % t '
             f'interval of the mean over seeds of the accuracy under {ATTACKS[robust]}. ' + (
                 'Last is that accuracy at the last epoch, and gap is how much lower it is, in percentage points. '
                 if two else 'The best checkpoint of each run is its last. ') +
             'results.csv has counts and Wilson intervals of each run.')


def _differences(
        members: Sequence[Group], groups: Sequence[Group], attacks: Sequence[str], robust: str) -> Section | None:
    columns = {ATTACKS[robust]: (robust, 'best')}
    if any(map(_has_two, members)):
        columns['last'] = robust, 'last'
    columns |= {ATTACKS[attack]: (attack, 'best') for attack in reversed(attacks) if attack != robust}
    rows: list[list[Any]] = []
    for reference in REFERENCES:
        for group in members:
            found = [list(paired_differences(group, groups, reference, *at).values()) for at in columns.values()]
            if found[0]:
                intervals = [mean_interval(values or [math.nan]) for values in found]
                deviation = intervals[0][3]
                needed = runs_needed(deviation, 1.) if math.isfinite(deviation) else None
                rows.append([
                    group.label(options=False), reference, len(found[0]), needed,
                    *(text for mean, low, high, _ in intervals
                      for text in (_some(mean, '+.2f'), _range(low, high, '+.2f')))])
    return Section(
        title=_title('Differences to ReLU and SiLU', members[0]), header=[
            'activation', 'minus', 'pairs', 'seeds for ±1', *(
                name for title in columns for name in (title, '95 % interval'))],
        columns='llnn' + 'nn' * len(columns), rows=rows,
        note='Differences between two runs with the same seed and options, in percentage points. The intervals are '
             '95 % t intervals over the pairs. They cover the chance in training, not the choice of test images, and '
             'are not corrected for the number of comparisons. Seeds for ±1: number of pairs whose interval for '
             f'{ATTACKS[robust]} would have one point to each side, with the spread that was measured.' + (
                 f' Last: under {ATTACKS[robust]} at the last epoch.' if 'last' in columns else ''),
    ) if rows else None


def _over_parameters(groups: Sequence[Group], robust: str) -> Section | None:
    items = sorted(fixed_groups(groups).items())
    return Section(
        title='Robustness over the parameter', text=[
            'Each point is a run whose parameters are fixed. Empty markers: the activation without parameters that is '
            'the same at this value, such as SiLU. The line joins the means over seeds; the dashed line is the mean '
            'of ReLU.'],
        figures=[figure('robust accuracy over fixed parameters', plot_parameters, dict(items[i:i + 2]), groups, robust)
                 for i in range(0, len(items), 2)]) if items else None


def _over_shape(groups: Sequence[Group], robust: str) -> Section:
    sets: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        sets[group.option_text].append(group)
    for activation, (_, lines) in fixed_groups(groups).items():
        for options, line in lines.items():
            sets[', '.join(filter(None, (f'{activation}, fixed', options)))] = [group for _, group in line]
    rows: list[list[Any]] = []
    for label, members in sorted(sets.items(), key=lambda item: -len(item[1])):
        for name, words in PROPERTIES.items():
            points = [(g.mean(name), g.mean(robust)) for g in members if not math.isnan(g.mean(name))]
            correlation, p = rank_correlation(*zip(*points, strict=True)) if points else (math.nan, math.nan)
            if not math.isnan(correlation):
                rows.append([label or 'all', words, len(points), f'{correlation:+.2f}', f'{p:.3g}'])
    return Section(
        title='Robustness over the shape', figures=[figure(
            'robust accuracy over curvature and over output on negative inputs', plot_shape, groups, robust)],
        text=['Empty markers: the parameters are fixed. Filled ones: they are learned, or there are none.'],
        header=['activations', 'property', 'points', 'rank correlation', 'p'], columns='ssnnn', rows=rows,
        note='Each point is the mean over seeds. Greatest curvature: away from kinks. Mean output: over [-8, 0]. Rank '
             'correlation: Spearman; p: from permutations, two-sided, not corrected for the number of rows. According '
             'to the paper (arXiv 2110.05626), high finite curvature and positive outputs on negative inputs improve '
             'robustness.')


def _learned(groups: Sequence[Group]) -> Section | None:
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
        figures=[figure('alpha and beta by epoch', plot_paths, learned),
                 figure('learned activations and their derivatives', shape.plot, shapes)],
        columns='lnnnnn', rows=[[
            group.label(options=False), *(_some(group.mean(name)) for name in ('alpha', 'beta', *PROPERTIES))]
            for group in learned],
        note='Means over seeds, of the best checkpoint.' + (
            f' The shapes are those of the first {MAX_SHAPES} rows.' if len(learned) > MAX_SHAPES else ''),
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
    columns = {'dataset': 'data set', 'model': 'models', 'norm': 'norm', 'eps': 'eps',
               'pgd_images': 'images, PGD', 'autoattack_images': 'images, AutoAttack',
               'autoattack_parts': 'parts of AutoAttack', 'device': 'device',
               'machine': 'machine', 'threads': 'threads per run', **{name: name for name in VERSIONS}}
    return Section(title='Runs', header=['', ''], columns='st', rows=[
        ['runs', len(cells)], ['time of all runs', duration(sum(row['seconds'] for row in cells.values()))],
        *([words, ', '.join(sorted({str(row[name]) for row in rows if row.get(name)}))]
          for name, words in columns.items())])


def _has_two(group: Group) -> bool:
    """Whether best and last checkpoint differ."""
    return group.values('epoch') != group.values('epoch', 'last')


def _title(text: str, group: Group) -> str:
    return ', '.join(filter(None, (text, group.option_text)))


def _some(value: float, style: str = '.3g') -> str | None:
    return None if math.isnan(value) else f'{round(value, 4) + 0.:{style}}'


def _range(low: float, high: float, style: str = '.1f') -> str | None:
    return None if math.isnan(low) else f'{low:{style}} to {high:{style}}'


