"""AutoAttack here beside pyautoattack called directly: the same verdicts, and the time and passes that they cost.

    python recipes/benchmarks/autoattack.py --checkpoint output/digits/model_best.pth.tar --n-examples 32
    python recipes/benchmarks/autoattack.py --trained resnet18_pssilu --image-size 32 --device cuda --rounds 3

Both run in one process on the same images with the same seed, batch size and components, the package with the model as
its users hand it over: in eval mode, float32, parameters asking for gradients. A difference in one verdict is an error
and no time is printed then; --differing N allows for N images, for devices on which a batch of another size rounds
otherwise. Every round takes the next images, and the two take turns in going first; figures are medians over rounds and
ratios within a round, with their range. Times are the device's events on a GPU, else wall-clock; passes are images that
went through the model, and of these the ones whose gradient was asked for. The roofline is the time that the FLOPs of
these passes need at the rate of a large matrix product, or their layers' bytes at the bandwidth of a copy, measured in
the same rounds; given is its share of the time.

The network is that of a checkpoint of `recipes/adv_train.py`; or with --trained NAME one of that name, trained here
first on the embedded digits for --epochs (with --image-size N on colour images of that size), by the recipe, to which
all other flags go; or with --network the CIFAR-10 ResNet-18 that pyautoattack ships with the images that foolbox ships.
"""
import argparse
import functools
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmark_runs import bare_module, colour_archives, job_of, trained
from _benchmarking import (
    Figure,
    chosen_device,
    peak_bytes,
    range_text,
    seconds,
    shipped_network,
    spread,
    summary_line,
    write_figures,
)
from _roofline import Machine, math_mode, work_of

from timm_paf.attacks import autoattack, parse_eps

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
Subject = tuple[nn.Module, Tensor, Tensor, str]  # model, images, labels, radius
SIDES = ('here', 'package')


def of_checkpoint(checkpoint: str) -> Subject:
    """Model, test images, labels and eps of a checkpoint."""
    import adv_validate
    job = adv_validate.prepare(['--checkpoint', checkpoint, '--device', 'cpu'])
    return job.model, job.data.images, job.data.labels, job.config.eps


def trained_here(args: argparse.Namespace, flags: Sequence[str]) -> Subject:
    """A model that the recipe trains now, and the test images of its data."""
    with tempfile.TemporaryDirectory() as folder:
        data = colour_archives(Path(folder), args.image_size) if args.image_size else []
        job = job_of(args.trained, 128, args.device, [*data, '--epochs', str(args.epochs), *flags])
        trained(job, job.updates)
        model = bare_module(job).to(memory_format=torch.contiguous_format)  # the package takes no other
        return model, job.test.images.clone(), job.test.labels.clone(), job.config.eps


class Stopwatch(logging.Handler):
    """Seconds of each component, from the package's messages."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith('running '):
            self.started = time.perf_counter()
        elif message.startswith('robust accuracy after '):
            self.seconds[message.split()[3].rstrip(':').lower()] = time.perf_counter() - self.started


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter]:
    """Counts the images that pass through a model, and those whose gradient is asked for."""
    passes: Counter = Counter()

    def count(module: nn.Module, args: tuple) -> None:
        passes['forward'] += len(args[0])
        passes['backward'] += len(args[0]) * (args[0].requires_grad and torch.is_grad_enabled())

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def directly(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> dict[str, Any]:
    """The package as its users call it."""
    from pyautoattack import AutoAttack
    stopwatch, logger = Stopwatch(), logging.getLogger('auto-attack')
    logger.addHandler(stopwatch)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    device = next(model.parameters()).device
    which = {'version': 'custom', 'attacks': list(args.attacks)} if args.attacks else {}
    adversary = AutoAttack(model, norm=NORMS[args.norm], eps=eps, seed=args.seed, device=device, **which)
    found: list[Tensor] = []
    with counted(model) as passes:
        taken = seconds(
            lambda: found.append(adversary.run_standard_evaluation(x, y, batch_size=args.batch_size)[0]), device)
    logger.removeHandler(stopwatch)
    with torch.no_grad():
        robust = torch.cat([
            (model(a.to(device)).argmax(1).cpu() == b)
            for a, b in zip(found[0].split(args.batch_size), y.split(args.batch_size), strict=True)])
    return {'robust': robust, 'seconds': taken, 'passes': passes, 'components': stopwatch.seconds}


def here(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> dict[str, Any]:
    """The same through timm_paf."""
    which: dict[str, Any] = {'version': 'custom', 'attacks': args.attacks} if args.attacks else {}
    found: list[Any] = []
    with counted(model) as passes:
        taken = seconds(lambda: found.append(autoattack(
            model, x, y, eps=eps, norm=args.norm, batch_size=args.batch_size, seed=args.seed, **which)),
            next(model.parameters()).device)
    result = found[0]
    return {
        'robust': result.robust.cpu(), 'seconds': taken, 'passes': passes,
        'components': {run.name: run.seconds for run in result.runs}, 'broken': Counter(result.broken_by)}


def into(result: dict[str, Any], run: Any, *args: Any) -> None:
    """Have a run's result in a dict."""
    result.update(run(*args))


def measure(subject: Subject, eps: float, args: argparse.Namespace) -> tuple[dict[str, list[dict[str, Any]]], Machine]:
    """What both found in every round, and what the machine did meanwhile.

    Raises:
        ValueError: If more verdicts differ than may.
    """
    model, x, y, _ = subject
    device = next(model.parameters()).device
    machine = Machine(device, ['fp32'])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with torch.no_grad():  # kernels are prepared before the clock starts
        model(x[:args.batch_size].to(device))
    for number in range(args.rounds):
        rows = torch.arange(number * args.n_examples, (number + 1) * args.n_examples) % len(x)
        machine.round()
        for side in SIDES if number % 2 else SIDES[::-1]:
            run, result = here if side == 'here' else directly, dict[str, Any]()
            peak = peak_bytes(functools.partial(into, result, run, model, x[rows], y[rows], eps, args), device)
            found[side].append({**result, 'peak': peak})
        differing = found['here'][-1]['robust'] != found['package'][-1]['robust']
        if int(differing.sum()) > args.differing:
            raise ValueError(f'the verdicts on images {rows[differing].tolist()} differ; no time is given.')
    return found, machine


def figures(found: dict[str, list[dict[str, Any]]], machine: Machine, subject: Subject) -> list[Figure]:
    """Everything that is measured, by name."""
    model, x = subject[:2]
    work = work_of(model, x.shape[1:])
    pairs = list(zip(found['here'], found['package'], strict=True))

    def over(part: Any) -> list[float]:
        return [part(ours) / part(theirs) if part(theirs) else 1. for ours, theirs in pairs]

    measured = [
        Figure('all: here over package', over(lambda r: r['seconds']), 'times'),
        *(Figure(f'{name}: here over package', over(lambda r, name=name: r['components'].get(name, 0.)), 'times')
          for name in found['package'][0]['components']),
        *(Figure(f'{kind} passes: here over package', over(lambda r, kind=kind: r['passes'][kind]), 'times')
          for kind in ('forward', 'backward')),
        Figure('images standing', [100 * float(r['robust'].float().mean()) for r in found['here']], '%'),
        Figure('differing verdicts', [float((a['robust'] != b['robust']).sum()) for a, b in pairs], 'images')]
    for side, results in found.items():
        times = [r['seconds'] for r in results]
        shares = []
        for number, r in enumerate(results):
            flops, moved = work.floor(1, (r['passes']['forward'], r['passes']['backward'], 0), x.element_size())
            # the weights are read once a batch, at the least once an image that is alone in it
            moved -= x.element_size() * work.weights * (r['passes']['forward'] + r['passes']['backward'])
            rates = machine.products['fp32'][number], machine.copies[number]
            shares.append(100 * max(flops / rates[0], moved / rates[1]) / r['seconds'])
        measured += [
            Figure(f'{side}: all', times, 's'), Figure(f'{side}: share of the roofline', shares, '%'),
            *(Figure(f'{side}: most allocated', [r['peak'] / 2**20 for r in results], 'MiB')
              for _ in range(results[0]['peak'] is not None))]
    return [*measured, *machine.figures()]


def table(found: dict[str, list[dict[str, Any]]], measured: Sequence[Figure]) -> list[str]:
    """Markdown."""
    by_name = {figure.name: figure for figure in measured}
    lines = ['| | here / package | package | images broken |', '| --- | ---: | ---: | ---: |']
    for name in found['package'][0]['components']:
        taken = [r['components'].get(name, 0.) for r in found['package']]
        broken = sum(r['broken'][name] for r in found['here'])
        lines.append(f'| {name} | {range_text(by_name[f"{name}: here over package"].values)} | {spread(taken)} s '
                     f'| {broken} |')
    lines.append(f'| all, with checks | {range_text(by_name["all: here over package"].values)} '
                 f'| {spread(by_name["package: all"].values)} s | |')
    for kind in ('forward', 'backward'):
        count = sum(r['passes'][kind] for r in found['package'])
        lines.append(f'| {kind} passes | {range_text(by_name[f"{kind} passes: here over package"].values)} '
                     f'| {count:,} images | |')
    for what, unit in (('share of the roofline', '%'), ('most allocated', 'MiB')):
        if f'here: {what}' in by_name:
            both = [statistics.median(by_name[f'{side}: {what}'].values) for side in SIDES]
            lines.append(f'| {what} | {both[0] / both[1]:.2f} | {both[1]:.1f} {unit} | |')
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', help='of recipes/adv_train.py')
    source.add_argument('--trained', metavar='NAME', help='a model that is trained here first')
    source.add_argument('--network', action='store_true', help="pyautoattack's network with foolbox's images")
    parser.add_argument('--epochs', type=int, default=4, help='of that training')
    parser.add_argument('--image-size', type=int, metavar='N', help='colour images of this size for that training')
    parser.add_argument('--n-examples', type=int, default=32, help='images a round')
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--batch-size', type=int, default=250, help='images a batch')
    parser.add_argument('--eps', help='radius; as in training or 4/255 if not given')
    parser.add_argument('--norm', default='linf', choices=tuple(NORMS), help='norm of the ball')
    parser.add_argument('--attacks', nargs='+', help='components; those of the standard version if not given')
    parser.add_argument('--seed', type=int, default=0, help='seed of both')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--differing', type=int, default=0, metavar='N', help='verdicts a round that may differ')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there as well')
    args, flags = parser.parse_known_args(argv)
    try:
        if flags and not args.trained:
            raise ValueError(f'unrecognized arguments: {" ".join(flags)}; the flags of training go with --trained.')
        if min(args.rounds, args.n_examples) < 1:
            raise ValueError('expected --rounds and --n-examples of 1 or more.')
        device = chosen_device(args.device)
        subject = of_checkpoint(args.checkpoint) if args.checkpoint else (
            trained_here(args, flags) if args.trained else (*shipped_network(), '4/255'))
        subject = (subject[0].eval().to(device), *subject[1:])
        radius = parse_eps(args.eps or subject[3], norm=args.norm)
        with math_mode('fp32'):
            found, machine = measure(subject, radius, args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    measured = figures(found, machine, subject)
    command = None if argv is None else [__file__, *argv]
    standing = sum(int(r['robust'].sum()) for r in found['here'])
    differing = sum(next(figure for figure in measured if figure.name == 'differing verdicts').values)
    print(f'{args.rounds} rounds of {args.n_examples} images, {args.norm} {args.eps or subject[3]}, {standing} '
          f'standing, {differing:.0f} verdicts differ; {machine}\n')
    print('\n'.join([*table(found, measured), '', summary_line(device, command)]))
    if args.json:
        write_figures(args.json, measured, device, command)
    return 0


if __name__ == '__main__':
    sys.exit(main())
