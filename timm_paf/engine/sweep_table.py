"""The table of a sweep: a row for the best and for the last checkpoint of each cell that is done."""
import csv
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from timm_paf._files import whole_file
from timm_paf.activations import ACTIVATIONS, shape
from timm_paf.engine.checkpoint_files import write_summary

__all__ = ['ATTACKS', 'SHAPE', 'read_path', 'sweep_rows', 'write_table']

ATTACKS = ('clean', 'pgd', 'autoattack')
SHAPE = ('finite_curvature', 'curvature', 'negative_mean', 'negative_max', 'negative_min', 'slope_left', 'slope_right',
         'smoothness')
VERSIONS = ('timm-paf', 'torch', 'timm', 'python')


def sweep_rows(output: Path) -> list[dict[str, Any]]:
    """Rows of results.csv from the folders of the runs in `output`, sorted by name.

    Each row has: the cell (`cell`, `activation`, `learned`, `given`: values that were fixed or that training started
    from, `seed`, and one column per option); the checkpoint (`checkpoint`: best or last, `epoch` from 0, validation
    accuracies in percent); for clean images, PGD and AutoAttack the counts, the accuracy in percent and its 95 %
    interval (Wilson); `alpha` and `beta` at the end of that epoch, as means if the network has several; the shape that
    they give, as in `timm_paf.shape.ActivationShape`; and `seconds` of the whole cell, threads, device and versions.
    """
    return [row for file in sorted(output.glob('*/cell.json')) if (file.parent / 'report.json').exists()
            for row in _rows(file.parent)]


def write_table(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write results.csv, and results.parquet if pyarrow is installed."""
    write_summary(rows, output / 'results.csv')
    try:
        from pyarrow import Table, parquet
    except ImportError:
        return
    names = dict.fromkeys(name for row in rows for name in row)
    with whole_file(output / 'results.parquet') as file:
        parquet.write_table(Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), file)


def read_path(output: Path, cell: str) -> list[dict[str, float]]:
    """`epoch` (from 0), and `alpha` and `beta` (those that there are) after each epoch of a cell."""
    with open(output / cell / 'summary.csv', newline='') as file:
        return [{'epoch': int(row['epoch']), **_parameters(row)} for row in csv.DictReader(file)]


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
        parameters = _parameters(epochs[epoch])
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
        row |= {'alpha': parameters.get('alpha'), 'beta': parameters.get('beta')}
        row |= _shape(cell['activation'], tuple(parameters.items()))
        rows.append({
            **row, 'seconds': round(cell['seconds'], 1), 'threads': cell['threads'], 'device': args['device'],
            'machine': cell['machine'], 'dataset': args['dataset'], 'model': args['model'], 'norm': args['norm'],
            'eps': args['eps'], 'created': report['created'],
            **{name: report['versions'].get(name) for name in VERSIONS}})
    return rows


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _parameters(row: Mapping[str, str]) -> dict[str, float]:
    """Values of alpha and beta in a row of summary.csv; their mean if it has one per place."""
    found: dict[str, list[float]] = {}
    for column, text in row.items():
        name = column.removeprefix('act_').rsplit('.', 1)[-1].removesuffix('_mean')
        if column.startswith('act_') and name in ('alpha', 'beta') and text:
            found.setdefault(name, []).append(float(text))
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
