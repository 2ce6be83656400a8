"""Table of what the parts of gpu.sh have measured, with the targets.

    python recipes/benchmarks/gpu_table.py output/gpu

Reads the JSON files of a folder; of a figure that was measured several times, the last one counts. Of several
activations or ways, the worst activation and the best way count.
"""
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from _timing import number

Figure = dict[str, Any]


class Target(NamedTuple):
    """A row of the table: figures whose file, row and column match, of which the worst or the best counts."""
    what: str
    file: str
    row: str
    column: str
    bound: str = ''  # '<= 1.1'
    worst: bool = False


ACTS = '(pssilu|psoftplus|psilu|reblu)'
TARGETS = (
    Target('PSSiLU, PSoftplus, PSiLU, ReBLU, bf16, forward + all gradients, time over SiLU', 'kernels',
           f'{ACTS}, fused: forward . all gradients', '÷ SiLU', '<= 1.1', worst=True),
    Target('… gradient of x alone', 'kernels', f'{ACTS}, fused: gradient of x alone', '÷ SiLU', '<= 1.03', worst=True),
    Target('… forward', 'kernels', f'{ACTS}, fused: forward', '÷ SiLU', worst=True),
    Target('… forward + all gradients, time over a copy', 'kernels', f'{ACTS}, fused: forward . all gradients',
           '÷ copy', worst=True),
    Target('host time of a call over SiLU', 'kernels', f'{ACTS}: call', '÷ SiLU', '<= 2', worst=True),
    Target('… with the gradient of x', 'kernels', f'{ACTS}: call with gradient of x', '÷ SiLU', '<= 2', worst=True),
    Target('update of a ResNet-18, PSSiLU, speed over ReLU', 'narrow', '.*_pssilu, captured', '÷ .*_relu', '>= 1'),
    Target('… images/s', 'narrow', '.*_pssilu, captured', 'speed', '>= 8000'),
    Target('… share of the bf16 peak, %', 'narrow', '.*_pssilu, captured', 'share of the bf16 peak'),
    Target('… eager, images/s', 'narrow', '.*_pssilu, eager', 'speed'),
    Target('… eager, ReLU, images/s', 'narrow', '.*_relu, eager', 'speed'),
    Target('update of a WRN-28-10, PSSiLU, images/s', 'wide', '.*_pssilu, captured', 'speed', '>= 1000'),
    Target('… share of the bf16 peak, %', 'wide', '.*_pssilu, captured', 'share of the bf16 peak'),
    Target('… speed over ReLU', 'wide', '.*_pssilu, captured', '÷ .*_relu'),
    Target('… eager, images/s', 'wide', '.*_pssilu, eager', 'speed'),
    Target('start of adv_train.py to its first update, s', 'train', '.*', 'start to first update', '<= 20'),
    Target('… images/s of an epoch', 'train', '.*', 'speed'),
    Target('… share of the bf16 peak, %', 'train', '.*', 'share of the bf16 peak'),
    Target('… alpha after the run', 'train', '.*', 'alpha'),
    Target('AutoAttack, time over pyautoattack called directly', 'autoattack', 'time', 'here ÷ package.*', '<= 0.5'),
    Target('… images with another result', 'autoattack', 'results that differ', 'images', '<= 0'),
    Target('batches of 256 from an archive, per second', 'data', 'timm_paf, archive, batches/s', 'value'),
    Target('waiting for images, % of an update', 'data', '.*: waiting for images.*', 'value', worst=True),
    Target('largest products of matrices in bf16, TFLOP/s', '(narrow|wide)', 'largest products', 'rate'),
)


def read(folder: Path) -> dict[tuple[str, str, str], Figure]:
    """Figures by file, row and column, each with the device, versions and time of its run."""
    found = {}
    for path in sorted(folder.glob('*.json')):
        for run in json.loads(path.read_text())['runs']:
            for figure in run['figures']:
                found[path.stem, figure['row'], figure['column']] = {**run, **figure}
    return found


def chosen(target: Target, figures: dict[tuple[str, str, str], Figure]) -> Figure | None:
    """The figure that counts for a target; None if there is none."""
    patterns = target.file, target.row, target.column
    fitting = [figure for key, figure in figures.items() if all(map(re.fullmatch, patterns, key))]
    less_is_better = target.bound.startswith('<=') or (target.worst and not target.bound)  # as of all times over others
    largest = target.worst == less_is_better
    return (max if largest else min)(fitting, key=lambda figure: figure['median'], default=None)


def verdict(target: Target, figure: Figure) -> str:
    if not target.bound:
        return ''
    if figure['device'].startswith('CPU'):
        return 'no GPU'
    sign, bound = (-1 if target.bound.startswith('<=') else 1), float(target.bound.split()[1])
    if sign * figure['median'] >= sign * bound:
        return 'met'
    return 'not decided' if figure['column'].endswith('at most') else 'missed'


def table(folder: Path) -> str:
    """The table as Markdown, with devices, dates and versions."""
    figures = read(folder)
    lines = ['| what | target | median (range) | |', '| --- | ---: | --- | --- |']
    used = []
    for target in TARGETS:
        figure = chosen(target, figures)
        cells = ['', 'not measured']
        if figure is not None:
            used.append(figure)
            low, high = number(figure['low']), number(figure['high'])
            value = number(figure['median']) + (f' ({low} … {high})' if figure['rounds'] > 1 else '')
            limit = 'at most ' if figure['column'].endswith('at most') else ''
            cells = [f'{limit}{value}; {figure["row"]}', verdict(target, figure)]
        lines.append(f'| {" | ".join((target.what, target.bound.replace("<=", "≤").replace(">=", "≥"), *cells))} |')
    lines.append('')
    states = {(figure['device'], figure['started'][:10], json.dumps(figure['versions'])) for figure in used}
    for device, date, versions in sorted(states):
        listed = ', '.join(f'{name} {version}' for name, version in json.loads(versions).items())
        lines.append(f'{device}, {date}, {listed}.')
    log = folder / 'tests.log'
    if log.exists():
        lines += [f'GPU tests: {line.strip("= ")}.' for line in log.read_text().splitlines()[-1:]]
    return '\n'.join(lines)


if __name__ == '__main__':
    print(table(Path(sys.argv[1])))
