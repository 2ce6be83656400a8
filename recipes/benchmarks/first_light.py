"""Table of the README: activations compared on the embedded digits, over several seeds.

    python recipes/benchmarks/first_light.py --output output/first_light

Each run is `adv_train.py` with its default configuration. Finished runs are not repeated.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / 'adv_train.py'
ROWS = {
    'ReLU': ('relu', 'pgd-at'), 'SiLU': ('silu', 'pgd-at'), 'PSoftplus': ('psoftplus', 'pgd-at'),
    'PSSiLU': ('pssilu', 'pgd-at'), 'ReLU, no adversarial training': ('relu', 'plain')}

parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
parser.add_argument('--output', type=Path, default=Path('output/first_light'), help='folder of the runs')
parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='one run each')
args = parser.parse_args()
print('| network | clean | PGD-20 | AutoAttack |\n| --- | ---: | ---: | ---: |')
for title, (act, task) in ROWS.items():
    reports = []
    for seed in args.seeds:
        name = f'wrn10_2_{act}-{task}-{seed}'
        if not (args.output / name / 'report.json').exists():
            subprocess.run([
                sys.executable, TRAIN, '--model', f'wrn10_2_{act}', '--task', task, '--seed', str(seed), '--output',
                args.output, '--experiment', name, '--eval-metric', 'clean' if task == 'plain' else 'robust',
            ], check=True, stdout=sys.stderr)
        reports.append(json.loads((args.output / name / 'report.json').read_text()))
    cells = [title]
    for metric in ('clean', 'pgd', 'autoattack'):
        values = [100 * report[metric]['correct'] / report[metric]['total'] for report in reports]
        deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
        cells.append(f'{statistics.mean(values):.1f}{deviation} ({reports[0][metric]["total"]})')
    print(f'| {" | ".join(cells)} |', flush=True)
print(json.dumps(reports[0]['versions']))
