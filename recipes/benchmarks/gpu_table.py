"""Table of the targets for a GPU and of the results of the parts of gpu.sh.

    python recipes/benchmarks/gpu_table.py output/gpu

Reads the JSON files of a folder. If several settings are measured (eager and compiled), the best one counts.
"""
import json
import re
import sys
from pathlib import Path

PASS = r'pssilu, fused: forward \+ backward'
# what, file, pattern of the row, pattern of the column, bound
TARGETS = (
    ('PSSiLU, bf16, forward + backward, over SiLU', 'activations', PASS, '÷ SiLU', '<= 1.05'),
    ('... over a copy', 'activations', PASS, '÷ copy', '<= 1.1'),
    ('PSSiLU, bf16, gradient of x, over SiLU', 'activations', 'pssilu, fused: gradient of x', '÷ SiLU', '<= 1.2'),
    ('Tensors that PSSiLU keeps in addition to x', 'activations', PASS, 'kept', '<= 0'),
    ('Update of a WRN, PSSiLU over ReLU, speed', 'step_wide', '.*_pssilu, .*', '÷ .*_relu', '>= 0.95'),
    ('Update of a WRN with PSSiLU over the plain loop, speed', 'step_wide', '.*_pssilu, .*', '÷ plain loop', '>= 4'),
    ('Update of a ResNet-18 with PSSiLU over the plain loop', 'step_narrow', '.*_pssilu, .*', '÷ plain loop', '>= 4'),
    ('Update over its bare passes, time, %', 'step_narrow', '.*_pssilu, fp32, eager', 'over the passes', '<= 5'),
    ('AutoAttack over pyautoattack, time', 'autoattack', 'time', 'here ÷ package', '<= 1'),
    ('PGD-10 over bare passes, time', 'attack', 'timm_paf', '÷ floor', '<= 1.02'),
    ('Waiting for images, % of an update', 'data', '.*: waiting for images.*', 'value', '<= 1'),
)


def main(folder: str) -> None:
    results = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob('*.json'))}
    devices = sorted({result['device'] for result in results.values()})
    print(f'{", ".join(devices) or "nothing was measured"}:\n')
    print('| what | target | median (range) | |\n| --- | ---: | --- | --- |')
    for what, file, row, column, bound in TARGETS:
        value, verdict, sign = '', 'not measured', -1 if bound.startswith('<=') else 1
        found = [figure for figure in results.get(file, {'figures': []})['figures']
                 if re.fullmatch(row, figure['row']) and re.fullmatch(column, figure['column'])]
        if found:
            best = max(found, key=lambda figure: sign * figure['median'])
            value = f'{best["median"]:.3g} ({best["low"]:.3g} … {best["high"]:.3g}), {best["row"]}'
            verdict = 'met' if sign * best['median'] >= sign * float(bound.split()[1]) else 'missed'
            if any(device.startswith('CPU') for device in devices):
                verdict = 'not judged: no GPU'
        print(f'| {" | ".join((what, bound, value, verdict))} |')


if __name__ == '__main__':
    main(sys.argv[1])
