"""A short run of adv_train.py: time to its first update, images per second, alpha, accuracies.

    python recipes/benchmarks/train_run.py --device cuda -- -c recipes/configs/dai2021_cifar10_linf_real.yaml \
        --dataset train.npz --test-data test.npz --epochs 5

What follows `--` are flags of adv_train.py. The loop is that of adv_train.py; with --limit it stops in time.
"""
import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from _networks import update_flops
from _timing import Table, new_parser, peak_flops, process_age, run

from timm_paf import paf_parameters
from timm_paf.engine import open_run, parse_train_config


def measure(args: argparse.Namespace) -> Iterator[Table]:
    trainer = open_run(parse_train_config([*args.flags, '--device', args.device]))
    if trainer is None:
        raise ValueError('the run is finished already; give another --experiment.')
    config, device = trainer.config, trainer.processes.device
    row = f'{config.model}, batch {config.batch_size}'
    table = Table(f'{config.dataset}, {config.task}, PGD-{config.attack_steps}:')
    with trainer.running():
        while trainer.epoch < trainer.epochs:
            for batch in trainer.batches():
                trainer.train_step(batch)
                if trainer.progress.update == 1:
                    if device.type == 'cuda':
                        torch.cuda.synchronize(device)
                    table.add(row, 'start to first update', [process_age()], 's')
                    yield table
                if time.monotonic() > args.until:
                    print(f'stopped after {trainer.progress.update} updates')
                    return
            accuracies = trainer.validate() if trainer.validation_due else {}
            found = trainer.end_epoch(accuracies)
            trainer.checkpoint()
            trainer.log(found)
            speeds = [float(each['train_images_per_second']) for each in trainer.progress.rows]
            table.add(row, 'speed', speeds[1:] or speeds, 'images/s')  # the first epoch also compiles and records
            table.add(row, 'under attack', [float(found['train_robust'])], '%')
            for name, parameter in paf_parameters(trainer.model).items():
                table.add(row, name.rsplit('.', 1)[-1], parameter.detach().flatten().tolist())
            yield table
    flops = update_flops(config.model, batch.x, config.attack_steps)
    table.add(row, 'share of the bf16 peak', [100 * flops * max(speeds) / peak_flops(device)], '%')
    yield table
    report = trainer.evaluate()
    for name, measurement in report.measurements.items():
        table.add(row, name, [100 * measurement.accuracy.correct / measurement.accuracy.total], '%')
    yield table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    parser.add_argument('flags', nargs='*', help='flags of adv_train.py, after --')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
