"""The table of a sweep: a row for the best and for the last checkpoint of each cell that is done; groups of rows."""
import csv
import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from timm_paf._files import whole_file, write_text
from timm_paf.activations import ACTIVATIONS, shape
from timm_paf.engine.checkpoint_files import write_summary

__all__ = [
    'ATTACKS', 'PROPERTIES', 'VERSIONS', 'Group', 'groups_of', 'paired_differences', 'read_groups', 'summarize',
    'sweep_rows', 'write_table']

Row = Mapping[str, Any]
ATTACKS = {'clean': 'clean', 'pgd': 'PGD', 'autoattack': 'AutoAttack'}  # names in reports, and titles
PROPERTIES = {
    'finite_curvature': 'greatest curvature', 'negative_mean': 'mean output, x < 0',
    'negative_max': 'largest output, x < 0'}
SHAPE = ('finite_curvature', 'curvature', 'negative_mean', 'negative_max', 'negative_min', 'slope_left', 'slope_right',
         'smoothness')
VERSIONS = ('timm-paf', 'torch', 'timm', 'python')


def sweep_rows(output: Path) -> list[dict[str, Any]]:
    """Rows of results.csv from the folders of the runs in `output`, sorted by name.

    Each row has: the cell (`cell`, `activation`, `learned`, `given`: values that were fixed or that training started
    from, `seed`, and one column per option); the checkpoint (`checkpoint`: best or last, `epoch` from 0, validation
    accuracies in percent); for clean images, PGD and AutoAttack the counts, the accuracy in percent and its 95 %
    interval (Wilson); `alpha` and `beta` at the end of that epoch, as means if the network has several, and without
    their sign where the formula takes the absolute value; the shape that they give, as in
    `timm_paf.shape.ActivationShape`; and `seconds` of the whole cell, threads, device and versions.
    """
    return [row for file in sorted(output.glob('*/cell.json')) if (file.parent / 'report.json').exists()
            for row in _rows(file.parent)]


def write_table(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write results.csv, results.json (see `summarize`), and results.parquet if pyarrow is installed."""
    write_summary(rows, output / 'results.csv')
    write_text(json.dumps(summarize(rows, output), indent=1) + '\n', output / 'results.json')
    try:
        from pyarrow import Table, parquet
    except ImportError:
        return
    names = dict.fromkeys(name for row in rows for name in row)
    with whole_file(output / 'results.parquet') as file:
        parquet.write_table(Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), file)


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells that differ only in their seed: rows of their best and last checkpoints, and paths, by seed."""
    activation: str
    learned: bool
    given: str
    options: tuple[tuple[str, str], ...]
    best: dict[int, Row] = dataclasses.field(default_factory=dict)
    last: dict[int, Row] = dataclasses.field(default_factory=dict)
    #: Lists of epoch (from 1), alpha and beta (None if there is none); empty if nothing is learned.
    paths: dict[int, list[tuple[int, float, float | None]]] = dataclasses.field(default_factory=dict)

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

    def fact(self, column: str) -> Any:
        """A column that is the same for all seeds."""
        return next(iter(self.best.values())).get(column)

    def mean(self, column: str, checkpoint: str = 'best') -> float:
        """Mean of a column over the seeds."""
        values = list(self.values(column, checkpoint).values())
        return sum(values) / len(values) if values else math.nan


def groups_of(rows: Iterable[Row], output: Path | None = None) -> list[Group]:
    """The groups of the rows of results.csv; with their paths if the folder of the sweep is given."""
    groups: dict[Any, Group] = {}
    for row in rows:
        names = list(row)
        options = tuple((name, row[name]) for name in names[names.index('seed') + 1:names.index('checkpoint')])
        key = row['activation'], row['learned'], row['given'], options
        group = groups.setdefault(key, Group(*key))
        (group.best if row['checkpoint'] == 'best' else group.last)[row['seed']] = row
        if output is not None and row['learned']:
            group.paths[row['seed']] = _path(output / row['cell'], row['activation'])
    return list(groups.values())


def summarize(rows: Sequence[Row], output: Path) -> dict[str, Any]:
    """The content of results.json: facts on the sweep, and one entry per group of cells that differ only in their seed.

    Accuracies are lists of percentages, and alpha and beta lists of numbers, with one entry per seed in the order of
    `seeds`, null where a run lacks it. `paths` has a list of [epoch, alpha, beta] per seed; the first epoch is 1.
    `read_groups` reads the groups.
    """
    facts = {name: ', '.join(sorted({str(row[name]) for row in rows}))
             for name in ('dataset', 'norm', 'eps', 'device', 'machine', 'threads')}
    columns = (
        *ATTACKS, *(f'{attack}_images' for attack in ATTACKS), 'val_robust', 'epoch', 'alpha', 'beta', 'seconds',
        *PROPERTIES)
    cells = {row['cell']: row for row in rows}
    return {
        **facts, 'date': max(row['created'] for row in rows)[:10],
        'versions': {name: rows[0].get(name) for name in VERSIONS},
        'autoattack_parts': max(row['autoattack_parts'] for row in rows), 'runs': len(cells),
        'seconds': round(sum(row['seconds'] for row in cells.values())), 'groups': [{
            **{name: getattr(group, name) for name in ('activation', 'learned', 'given')},
            'options': dict(group.options), **{name: group.fact(name) for name in ('model', 'lr', 'epochs')},
            'seeds': list(group.best), **{checkpoint: {
                name: [found.get(seed) for seed in group.best]
                for name in columns if (found := group.values(name, checkpoint))}
                for checkpoint in ('best', 'last')},
            'paths': list(group.paths.values())} for group in groups_of(rows, output)]}


def read_groups(content: Mapping[str, Any]) -> list[Group]:
    """The groups of results.json."""
    def rows(entry: Mapping[str, Any], checkpoint: str) -> dict[int, Row]:
        facts = {name: entry[name] for name in ('model', 'lr', 'epochs')}
        return {seed: {name: values[i] for name, values in entry[checkpoint].items()} | facts
                for i, seed in enumerate(entry['seeds'])}

    return [Group(
        entry['activation'], entry['learned'], entry['given'], tuple(entry['options'].items()), rows(entry, 'best'),
        rows(entry, 'last'), dict(zip(entry['seeds'], entry['paths'], strict=False))) for entry in content['groups']]


def paired_differences(
        group: Group, groups: Sequence[Group], reference: str, column: str, checkpoint: str = 'best',
) -> dict[int, float]:
    """Differences by seed to the activation `reference` with the same options, in a column of these checkpoints.

    An option that the reference does not name, such as the sharing of parameters that it lacks, may differ.
    """
    fitting = [g for g in groups if g.activation == reference and set(g.options) <= set(group.options)]
    if not fitting or group.activation == reference:
        return {}
    other = max(fitting, key=lambda g: len(g.options)).values(column, checkpoint)
    mine = group.values(column, checkpoint)
    return {seed: mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())}


def _rows(folder: Path) -> list[dict[str, Any]]:
    cell, args = json.loads((folder / 'cell.json').read_text()), yaml.safe_load((folder / 'args.yaml').read_text())
    chosen = json.loads((folder / 'selection.json').read_text())
    chosen = chosen[chosen['selected']]
    with open(folder / 'summary.csv', newline='') as file:
        epochs = {int(row['epoch']): row for row in csv.DictReader(file)}
    rows = []
    for checkpoint in ('best', 'last'):
        epoch = chosen[checkpoint]['epoch']
        same = checkpoint == 'best' or epoch == chosen['best']['epoch']
        report = json.loads((folder / ('' if same else 'last') / 'report.json').read_text())
        parameters = _parameters(epochs[epoch], cell['activation'])
        row = {
            'cell': folder.name, 'activation': cell['activation'], 'learned': cell['learned'],
            'given': ' '.join(f'{name}={value:g}' for name, value in cell['parameters'].items()), 'seed': cell['seed'],
            **cell['options'], 'checkpoint': checkpoint, 'epoch': epoch,
            **{f'val_{name}': _number(epochs[epoch].get(f'eval_{name}')) for name in ('clean', 'robust')}}
        for attack in ATTACKS:
            if attack in report:
                found = report[attack]
                row |= {
                    f'{attack}_correct': found['correct'], f'{attack}_images': found['total'],
                    attack: 100 * found['correct'] / found['total'],
                    **{f'{attack}_{end}': 100 * value for end, value in zip(
                        ('low', 'high'), found['interval'], strict=True)}}
        row['autoattack_parts'] = ' '.join(report.get('autoattack', {}).get('components', ()))
        row |= {'alpha': parameters.get('alpha'), 'beta': parameters.get('beta')}
        row |= _shape(cell['activation'], tuple(parameters.items()))
        rows.append({
            **row, 'seconds': round(cell['seconds'], 1), 'threads': cell['threads'], 'device': args['device'],
            'machine': cell['machine'], 'dataset': args['dataset'], 'model': args['model'], 'norm': args['norm'],
            'eps': args['eps'], 'lr': args['lr'], 'epochs': args['epochs'], 'created': report['created'],
            **{name: report['versions'].get(name) for name in VERSIONS}})
    return rows


def _path(folder: Path, activation: str) -> list[tuple[int, float, float | None]]:
    with open(folder / 'summary.csv', newline='') as file:
        points = [(int(row['epoch']) + 1, _parameters(row, activation)) for row in csv.DictReader(file)]
    return [(epoch, point['alpha'], point.get('beta')) for epoch, point in points if 'alpha' in point]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _parameters(row: Mapping[str, str], activation: str) -> dict[str, float]:
    """Values of alpha and beta in a row of summary.csv; their mean if it has one per place.

    Without the sign where the formula takes the absolute value: else 0.1 and -0.1, the same curve, had a mean of 0.
    """
    found: dict[str, list[float]] = {}
    specs = ACTIVATIONS[activation].parameter_specs if activation in ACTIVATIONS else {}
    for column, text in row.items():
        name = column.removeprefix('act_').rsplit('.', 1)[-1].removesuffix('_mean')
        if column.startswith('act_') and name in ('alpha', 'beta') and text:
            value = float(text)
            bounded = name in specs and specs[name].greatest < math.inf
            found.setdefault(name, []).append(abs(value) if bounded else value)
    return {name: sum(values) / len(values) for name, values in found.items()}


@functools.cache
def _shape(activation: str, parameters: tuple[tuple[str, float], ...]) -> dict[str, float | str]:
    """Shape numbers of an activation; empty if its parameters are not finite."""
    if not all(math.isfinite(value) for _, value in parameters):
        return {}
    specs = ACTIVATIONS[activation].parameter_specs if activation in ACTIVATIONS else {}
    found = shape.describe(activation, **{
        name: specs[name].clamp(value) for name, value in parameters if name in specs})
    return {name: getattr(found, name) for name in SHAPE}
