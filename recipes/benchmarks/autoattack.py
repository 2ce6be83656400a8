"""AutoAttack here beside pyautoattack called directly: the same verdicts, and the time and passes that they cost.

    python recipes/benchmarks/autoattack.py --checkpoint output/digits/model_best.pth.tar --n-examples 32

Both run in one process on the same images with the same seed, batch size and components, the package with the model as
its users hand it over: in eval mode, float32, parameters asking for gradients. A difference in one verdict is an error.
Times are wall-clock; passes are images that went through the model, and of these the ones whose gradient was asked for.
The checkpoint is one of `recipes/adv_train.py`; `--network` takes instead the CIFAR-10 ResNet-18 that pyautoattack
ships and the images that foolbox ships.
"""
import argparse
import datetime
import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import shipped_network
from pyautoattack import AutoAttack

from timm_paf.attacks import autoattack

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}


def digits(checkpoint: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, str]:
    """Model, test images, labels and eps of a checkpoint."""
    import adv_validate
    job = adv_validate.prepare(['--checkpoint', checkpoint, '--device', 'cpu'])
    return job.model, job.data.images, job.data.labels, job.config.eps


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


def directly(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, args: Any) -> dict[str, Any]:
    """The package as its users call it."""
    stopwatch, logger = Stopwatch(), logging.getLogger('auto-attack')
    logger.addHandler(stopwatch)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    device = next(model.parameters()).device
    with counted(model) as passes:
        started = time.perf_counter()
        adversary = AutoAttack(model, norm=NORMS[args.norm], eps=eps, seed=args.seed, device=device)
        x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=args.batch_size)
        seconds = time.perf_counter() - started
    logger.removeHandler(stopwatch)
    with torch.no_grad():
        robust = torch.cat([
            (model(a.to(device)).argmax(1).cpu() == b)
            for a, b in zip(x_adv.split(args.batch_size), y.split(args.batch_size), strict=True)])
    return {'robust': robust, 'seconds': seconds, 'passes': passes, 'components': stopwatch.seconds}


def here(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float, args: Any) -> dict[str, Any]:
    """The same through timm_paf."""
    with counted(model) as passes:
        started = time.perf_counter()
        result = autoattack(model, x, y, eps=eps, norm=args.norm, batch_size=args.batch_size, seed=args.seed)
        seconds = time.perf_counter() - started
    return {
        'robust': result.robust, 'seconds': seconds, 'passes': passes,
        'components': {run.name: run.seconds for run in result.runs}, 'broken': Counter(result.broken_by)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', help='of recipes/adv_train.py')
    source.add_argument('--network', action='store_true', help="pyautoattack's network with foolbox's images")
    parser.add_argument('--n-examples', type=int, default=32, help='images')
    parser.add_argument('--batch-size', type=int, default=250, help='images a batch')
    parser.add_argument('--eps', help='radius; as in training or 4/255 if not given')
    parser.add_argument('--norm', default='linf', choices=tuple(NORMS), help='norm of the ball')
    parser.add_argument('--seed', type=int, default=0, help='seed of both')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    args = parser.parse_args()
    from timm_paf.attacks import parse_eps
    model, x, y, eps = digits(args.checkpoint) if args.checkpoint else (*shipped_network(), '4/255')
    radius = parse_eps(args.eps or eps, norm=args.norm)
    model, x, y = model.eval().to(args.device), x[:args.n_examples], y[:args.n_examples]
    with torch.no_grad():  # kernels are prepared before the clock starts
        model(x[:args.batch_size].to(args.device))

    package, ours = directly(model, x, y, radius, args), here(model, x, y, radius, args)
    differing = (package['robust'] != ours['robust']).nonzero().flatten().tolist()
    if differing:
        sys.exit(f'the verdicts on images {differing} differ')
    standing = int(ours['robust'].sum())
    print(f'{len(x)} images, {args.norm} {args.eps or eps}, {standing} standing; the same verdicts on all')
    print('| | here / package | package, s | images broken |')
    print('| --- | ---: | ---: | ---: |')
    for name, seconds in package['components'].items():
        print(f'| {name} | {ours["components"][name] / seconds:.2f} | {seconds:.1f} | {ours["broken"][name]} |')
    print(f'| all, with checks | {ours["seconds"] / package["seconds"]:.2f} | {package["seconds"]:.1f} | |')
    for kind in ('forward', 'backward'):
        there = package['passes'][kind]
        print(f'| {kind} passes | {ours["passes"][kind] / there:.2f} | {there:,} images | |')
    cuda = args.device.startswith('cuda')
    device = torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads'
    print(f'`python {" ".join(sys.argv)}`, {datetime.date.today()}, Python {platform.python_version()}, torch '
          f'{metadata.version("torch")}, pyautoattack {metadata.version("pyautoattack")}, {device}')


if __name__ == '__main__':
    main()
