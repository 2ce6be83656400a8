"""Robust accuracy after a short run: the recipe at its fastest beside the plain float32 loop, as many updates each.

    python recipes/benchmarks/short_run.py --model wrn10_2_pssilu --epochs 12
    python recipes/benchmarks/short_run.py --device cuda --amp --channels-last --torchcompile inductor

Flags that are not its own go to the recipe, and not to the loop (`recipes/_plain_loop.py`), which is written as the
paper's authors train. Both train on the same batches in the same order, from the same weights, with the same schedule,
once with each seed; what they come to is measured in float32 with PGD-20 on the test split. The noise that a difference
has to exceed is two standard errors of it: over the seeds, and over the images.
"""
import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import adv_train
from _benchmark_runs import bare_module, job_of, trained
from _benchmarking import Figure, chosen_device, summary_line, write_figures
from _plain_loop import EPS, plain_formulas, plain_update
from _roofline import math_mode

from timm_paf.attacks import PGD
from timm_paf.data import Batch
from timm_paf.engine.config import TrainConfig, plain

WAYS = ('recipe', 'plain loop')
OF_SPEED = {
    'amp', 'amp_dtype', 'channels_last', 'torchcompile', 'torchcompile_mode', 'grad_checkpointing', 'synchronize_step',
    'opt_fused', 'experiment', 'prefetch', 'data_on_device', 'data_on_device_budget', 'model_kwargs'}


def recipe_run(job: adv_train.Run) -> float:
    """Train as the recipe does."""
    return trained(job, job.updates)


def plain_run(job: adv_train.Run) -> float:
    """Train as the authors' trainer does."""
    model = job.task.trainable_module
    plain_formulas(model)

    def update(batch: Batch, number: int) -> None:
        plain_update(model, job.optimizer, batch)
        job.scheduler.step_update(number + 1)
    return trained(job, update)


def check_equal(config: TrainConfig, other: TrainConfig) -> None:
    """Raise ValueError if settings differ that decide what is learned."""
    differing = [
        f'--{name.replace("_", "-")}' for name, value in plain(config).items()
        if value != plain(other)[name] and name not in OF_SPEED]
    if differing:
        raise ValueError(f'{", ".join(differing)}: the two runs have to be equal but for what makes them fast.')


def robust(job: adv_train.Run) -> tuple[int, int]:
    """How many test images stand under PGD-20, and how many there are."""
    device, model, attack = job.processes.device, bare_module(job).eval(), PGD(eps=EPS, steps=20)
    standing = 0
    with math_mode('fp32'):
        for x, y in zip(job.test.images.split(256), job.test.labels.split(256), strict=True):
            x, y = x.to(device), y.to(device)
            x_adv = attack(model, x, y)
            with torch.no_grad():
                standing += int((model(x_adv).argmax(1) == y).sum())
    return standing, len(job.test.images)


def noise(counts: dict[str, list[int]], total: int) -> float:
    """Two standard errors of the difference of the mean accuracies, in points."""
    seeds = [statistics.variance(c) / total**2 / len(c) if len(c) > 1 else 0. for c in counts.values()]
    shares = [sum(c) / (total * len(c)) for c in counts.values()]
    images = [share * (1 - share) / total for share in shares]
    return 200 * math.sqrt(sum(seeds) + sum(images))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--model', default='wrn10_2_pssilu')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--updates-per-epoch', type=int, help='instead of one pass over the real images')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there as well')
    args, flags = parser.parse_known_args(argv)
    counts: dict[str, list[int]] = {way: [] for way in WAYS}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    configs: dict[str, TrainConfig] = {}
    common = ['--epochs', str(args.epochs)]
    if args.updates_per_epoch:
        common += ['--updates-per-epoch', str(args.updates_per_epoch)]
    try:
        device = chosen_device(args.device)
        for seed in args.seeds:
            for way, run, own in zip(WAYS, (recipe_run, plain_run), (flags, []), strict=True):
                job = job_of(args.model, args.batch_size, args.device, [*common, *own], seed=seed)
                configs[way] = job.config
                check_equal(configs['recipe'], configs[way])
                torch.manual_seed(seed)
                with math_mode('fp32'):
                    rates[way].append(run(job))
                standing, total = robust(job)
                counts[way].append(standing)
                print(f'seed {seed}, {way}: {standing} of {total} stand, {rates[way][-1]:.0f} images/s', flush=True)
    except (ValueError, TypeError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    accuracies = {way: [100 * c / total for c in counts[way]] for way in WAYS}
    means = {way: statistics.mean(values) for way, values in accuracies.items()}
    most = noise(counts, total)
    difference = means['recipe'] - means['plain loop']
    print(f'{args.model}, {args.epochs} epochs, seeds {args.seeds}; PGD-20 on {total} test images, in percent:')
    for way in WAYS:
        print(f'  {way:11} {means[way]:.1f} ({", ".join(f"{value:.1f}" for value in accuracies[way])})')
    print(f'  difference {difference:+.1f}, noise {most:.1f}')
    command = None if argv is None else [__file__, *argv]
    print(summary_line(device, command))
    if args.json:
        write_figures(args.json, [
            *(Figure(f'{way}: robust accuracy', accuracies[way], '%') for way in WAYS),
            *(Figure(f'{way}: images/s', rates[way], 'images/s') for way in WAYS),
            Figure('difference of the means', [difference], 'points'), Figure('noise of it', [most], 'points')],
            device, command)
    return 0


if __name__ == '__main__':
    sys.exit(main())
