"""Table of the README: activations compared on the embedded digits, over several seeds.

    python recipes/benchmarks/first_light.py --output output/first_light

Each run is `adv_train.py` with its default configuration. Finished runs are not repeated. Without adversarial training
the checkpoint with the best clean accuracy is measured.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / 'adv_train.py'
ROWS = {
    'ReLU': ('wrn10_2_relu', 'pgd-at'), 'SiLU': ('wrn10_2_silu', 'pgd-at'),
    'PSoftplus': ('wrn10_2_psoftplus', 'pgd-at'), 'PSSiLU': ('wrn10_2_pssilu', 'pgd-at'),
    'ReLU, no adversarial training': ('wrn10_2_relu', 'plain')}


def report(output: Path, model: str, task: str, seed: int) -> dict:
    """Report of one run, which is made if it does not exist."""
    name = f'{model}-{task}-{seed}'
    metric = 'clean' if task == 'plain' else 'robust'
    if not (output / name / 'report.json').exists():
        subprocess.run([
            sys.executable, str(TRAIN), '--model', model, '--task', task, '--seed', str(seed), '--eval-metric', metric,
            '--output', str(output), '--experiment', name], check=True, stdout=sys.stderr)
    return json.loads((output / name / 'report.json').read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--output', type=Path, default=Path('output/first_light'), help='folder of the runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='one run each')
    args = parser.parse_args()
    print('| network | clean | PGD-20 | AutoAttack |\n| --- | ---: | ---: | ---: |')
    for title, (model, task) in ROWS.items():
        reports = [report(args.output, model, task, seed) for seed in args.seeds]
        cells = [title]
        for name in ('clean', 'pgd', 'autoattack'):
            values = [100 * one[name]['correct'] / one[name]['total'] for one in reports]
            deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.1f}{deviation} ({reports[0][name]["total"]})')
        print(f'| {" | ".join(cells)} |', flush=True)
    print(json.dumps(reports[0]['versions']))


if __name__ == '__main__':
    main()
