"""Table of the targets for a GPU and of what the parts of gpu.sh measured.

    python recipes/benchmarks/gpu_table.py output/gpu

Reads the JSON files of a folder. If several settings are measured (eager and compiled), the best one counts.
"""
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Target(NamedTuple):
    """Figures by patterns for file and row, the name of a column, and their bound: the sign says which side is good."""
    what: str
    file: str
    row: str
    column: str
    bound: str


PASS = r'pssilu, fused: forward \+ backward'
WRN, RESNET = ('step_wide', '.*_pssilu, .*'), ('step_narrow', '.*_pssilu, .*')
TARGETS = (
    Target('PSSiLU, bf16, forward + backward, over SiLU', 'activations', PASS, '÷ SiLU', '<= 1.05'),
    Target('... over a copy', 'activations', PASS, '÷ copy', '<= 1.1'),
    Target('PSSiLU, bf16, gradient of x, over SiLU', 'activations', 'pssilu, fused: gradient of x', '÷ SiLU', '<= 1.2'),
    Target('Tensors that PSSiLU keeps next to x', 'activations', PASS, 'kept', '<= 0'),
    Target('Update of a WRN, PSSiLU over ReLU, speed', *WRN, '÷ .*_relu', '>= 0.95'),
    Target('Update of a WRN with PSSiLU over the plain loop, speed', *WRN, '÷ plain loop', '>= 4'),
    Target('Update of a ResNet-18 with PSSiLU over the plain loop, speed', *RESNET, '÷ plain loop', '>= 4'),
    Target('Update over its bare passes, time, %', 'step_narrow', '.*_pssilu, fp32, eager', 'over the passes', '<= 5'),
    Target('AutoAttack over pyautoattack, time', 'autoattack', 'all, s', 'here ÷ package', '<= 0.7'),
    Target('PGD-10 over bare passes, time', 'attack', 'timm_paf', '÷ floor', '<= 1.02'),
    Target('Waiting for images, % of an update', 'data', '.*: waiting for images.*', 'value', '<= 1'),
)


def verdict(target: Target, results: dict[str, dict[str, Any]], judged: bool) -> tuple[str, str]:
    """Best value with its row and range, and whether it is inside the bound."""
    found = [
        figure for figure in results.get(target.file, {'figures': []})['figures']
        if re.fullmatch(target.row, figure['row']) and re.fullmatch(target.column, figure['column'])]
    if not found:
        return '', 'not measured'
    sign, bound = target.bound.split()
    best = (min if sign == '<=' else max)(found, key=lambda figure: figure['median'])
    met = best['median'] <= float(bound) if sign == '<=' else best['median'] >= float(bound)
    value = f'{best["median"]:.3g} ({best["low"]:.3g} … {best["high"]:.3g}), {best["row"]}'
    return value, ('met' if met else 'missed') if judged else 'not judged: no GPU'


def main(folder: str) -> int:
    results = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob('*.json'))}
    devices = sorted({result['device'] for result in results.values()})
    judged = not any(device.startswith('CPU') for device in devices)
    lines = [f'{", ".join(devices) or "nothing was measured"}:', '',
             '| what | target | median (range) | |', '| --- | ---: | --- | --- |']
    for target in TARGETS:
        lines.append(f'| {" | ".join((target.what, target.bound, *verdict(target, results, judged)))} |')
    text = '\n'.join(lines)
    print(text)
    Path(folder, 'table.md').write_text(text + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
