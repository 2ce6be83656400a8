"""The table of the README: activations side by side on the embedded digits, over several seeds.

    python recipes/benchmarks/first_light.py --output output/first_light

Each run is `recipes/adv_train.py` with its default configuration in a process of its own; without adversarial training
the checkpoint with the best clean accuracy is measured, since hardly any image withstands the attack. Runs that are
finished are not repeated, so an interrupted table goes on where it stopped.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / 'adv_train.py'
ROWS = (
    ('ReLU', 'wrn10_2_relu', 'pgd-at'),
    ('SiLU', 'wrn10_2_silu', 'pgd-at'),
    ('PSoftplus', 'wrn10_2_psoftplus', 'pgd-at'),
    ('PSSiLU', 'wrn10_2_pssilu', 'pgd-at'),
    ('ReLU, no adversarial training', 'wrn10_2_relu', 'plain'),
)


def result(output: Path, model: str, task: str, seed: int) -> dict:
    """The report of one run, made if it is not there yet."""
    experiment = f'{model}-{task}-{seed}'
    report = output / experiment / 'report.json'
    if not report.exists():
        subprocess.run([
            sys.executable, str(TRAIN), '--model', model, '--task', task, '--seed', str(seed),
            '--eval-metric', 'clean' if task == 'plain' else 'robust', '--output', str(output),
            '--experiment', experiment], check=True, stdout=sys.stderr)
    return json.loads(report.read_text())


def spread(reports: list[dict], name: str) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * report[name]['correct'] / report[name]['total'] for report in reports]
    return f'{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}' if len(values) > 1 else f'{values[0]:.1f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=Path('output/first_light'), help='folder of the runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    lines = []
    for seed in args.seeds:  # seed by seed, so that every row has the same number of runs at any time
        for _, model, task in ROWS:
            result(args.output, model, task, seed)
    for title, model, task in ROWS:
        reports = [result(args.output, model, task, seed) for seed in args.seeds]
        lines.append(f'| {title} | ' + ' | '.join(spread(reports, n) for n in ('clean', 'pgd', 'autoattack')) + ' |')
    images = {name: reports[0][name]['total'] for name in ('clean', 'pgd', 'autoattack')}
    print(f'eps {reports[0]["pgd"]["eps"]}; mean ± standard deviation over seeds {args.seeds}, in percent')
    print(f'| network | clean ({images["clean"]}) | PGD-20 ({images["pgd"]}) | AutoAttack ({images["autoattack"]}) |')
    print('| --- | ---: | ---: | ---: |')
    print('\n'.join(lines))
    print(json.dumps(reports[0]['versions']))


if __name__ == '__main__':
    main()
