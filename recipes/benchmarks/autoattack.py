"""AutoAttack of this package compared with pyautoattack called directly: same verdicts, time and passes.

    python recipes/benchmarks/autoattack.py --checkpoint output/digits/model_best.pth.tar --n-examples 32
    python recipes/benchmarks/autoattack.py --trained resnet18_pssilu --image-size 32 --device cuda --rounds 3

Both run in one process on the same images with the same seed, batch size and components. Every round takes the next
images, and the two take turns in going first. If their verdict differs on an image, nothing is printed; --differing N
allows N images per round, for devices on which rounding depends on the batch size. Passes are images that go forward
through the network, and images whose gradient is computed.

The network is one of: that of a checkpoint of `adv_train.py` on the embedded digits; a model trained here on them
(--trained NAME, with --image-size N on images of that size); or the CIFAR-10 ResNet-18 that pyautoattack ships, on the
images that foolbox ships (--network).
"""
import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from _networks import Subject, cifar, digits
from _timing import Table, new_parser, ratios, run
from torch import Tensor, nn
from torch.utils.benchmark import timer

from timm_paf.attacks import autoattack, parse_eps
from timm_paf.models import read_checkpoint

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}


@dataclass
class Outcome:
    """Verdicts (N,) of one run, and what they cost: seconds, seconds by component, and images passed."""
    robust: Tensor
    components: dict[str, float]
    broken: Counter = field(default_factory=Counter)
    passes: Counter = field(default_factory=Counter)
    seconds: float = 0.


class Stopwatch(logging.Handler):
    """Seconds of each component, from the log messages of pyautoattack."""

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


def directly(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> Outcome:
    """Run pyautoattack as its documentation says."""
    from pyautoattack import AutoAttack
    stopwatch, logger = Stopwatch(), logging.getLogger('auto-attack')
    logger.addHandler(stopwatch)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    which = {'version': 'custom', 'attacks': list(args.attacks)} if args.attacks else {}
    adversary = AutoAttack(model, norm=NORMS[args.norm], eps=eps, seed=args.seed, device=args.device, **which)
    x_adv = adversary.run_standard_evaluation(x, y, batch_size=args.batch_size)[0]
    logger.removeHandler(stopwatch)
    with torch.no_grad():
        robust = torch.cat([
            model(images.to(args.device)).argmax(1).cpu() == labels
            for images, labels in zip(x_adv.split(args.batch_size), y.split(args.batch_size), strict=True)])
    return Outcome(robust, stopwatch.seconds)


def here(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> Outcome:
    """Run the same through timm_paf."""
    which = {'version': 'custom', 'attacks': args.attacks} if args.attacks else {}
    result = autoattack(
        model, x, y, eps=eps, norm=args.norm, batch_size=args.batch_size, seed=args.seed, **which)
    return Outcome(
        result.robust.cpu(), {each.name: each.seconds for each in result.runs}, Counter(result.broken_by))


SIDES = {'here': here, 'package': directly}


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter]:
    """Count the images that pass through a model, and those whose gradient is computed."""
    passes: Counter = Counter()

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes['forward'] += len(inputs[0])
        passes['backward'] += len(inputs[0]) * (inputs[0].requires_grad and torch.is_grad_enabled())

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def in_turns(subject: Subject, args: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Outcomes of both in every round; ValueError if their verdicts differ."""
    eps = parse_eps(args.eps, norm=args.norm)
    found: dict[str, list[Outcome]] = {side: [] for side in SIDES}
    with torch.no_grad():  # kernels are compiled before the clock starts
        subject.model(subject.x[:args.batch_size])
    for number in range(args.rounds):
        rows = torch.arange(number * args.n_examples, (number + 1) * args.n_examples) % len(subject.x)
        x, y = subject.x.cpu()[rows], subject.y.cpu()[rows]
        for side in list(SIDES)[::-1 if number % 2 else 1]:
            with counted(subject.model) as passes:
                started = timer()
                outcome = SIDES[side](subject.model, x, y, eps, args)
                outcome.seconds, outcome.passes = timer() - started, passes
            found[side].append(outcome)
        differing = found['here'][-1].robust != found['package'][-1].robust
        if int(differing.sum()) > args.differing:
            raise ValueError(f'the verdicts on images {rows[differing].tolist()} differ; no time is printed.')
    return found


def measure(args: argparse.Namespace) -> list[Table]:
    if args.n_examples < 1:
        raise ValueError(f'--n-examples {args.n_examples}: expected 1 or more.')
    if args.network:
        subject, radius = cifar(args.device), '4/255'
    else:
        subject = digits(args.device, name=args.trained, checkpoint=args.checkpoint, size=args.image_size,
                         epochs=args.epochs)
        radius = '0.2' if args.checkpoint is None else str(read_checkpoint(args.checkpoint)['args']['eps'])
    args.eps = args.eps or radius
    found = in_turns(subject, args)
    outcomes = found['here'], found['package']
    differing = sum(int((a.robust != b.robust).sum()) for a, b in zip(*outcomes, strict=True))
    table = Table(
        f'{args.rounds} rounds of {args.n_examples} images, {args.norm} {args.eps} ({subject.title}), '
        f'{sum(int(outcome.robust.sum()) for outcome in found["here"])} robust, {differing} verdicts differ')

    def add(row: str, costs: Sequence[list[float]]) -> None:
        ours, package = costs
        if all(package):  # a component has no image left to attack in some rounds
            table.add(row, 'here ÷ package', ratios(ours, package))
        table.add(row, 'package', package)

    for name in found['package'][0].components:
        add(f'{name}, s', [[outcome.components.get(name, 0.) for outcome in side] for side in outcomes])
        table.add(f'{name}, s', 'images broken', [sum(outcome.broken[name] for outcome in found['here'])])
    add('all, s', [[outcome.seconds for outcome in side] for side in outcomes])
    for kind in ('forward', 'backward'):
        add(f'{kind} passes, images', [[outcome.passes[kind] for outcome in side] for side in outcomes])
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', type=Path, metavar='FILE', help='checkpoint of adv_train.py on the digits')
    source.add_argument('--trained', metavar='NAME', help='model to train here on the digits')
    source.add_argument('--network', action='store_true', help="network of pyautoattack with foolbox's images")
    parser.add_argument('--epochs', type=int, default=20, help='epochs of that training')
    parser.add_argument('--image-size', type=int, default=8, metavar='N', help='height and width of the digits')
    parser.add_argument('--n-examples', type=int, default=32, help='images per round')
    parser.add_argument('--batch-size', type=int, default=250, help='images per batch')
    parser.add_argument('--eps', help='radius; unset: that of the training, or 4/255')
    parser.add_argument('--norm', default='linf', choices=tuple(NORMS), help='norm of the ball')
    parser.add_argument('--attacks', nargs='+', help='components; unset: those of the standard version')
    parser.add_argument('--seed', type=int, default=0, help='seed of both')
    parser.add_argument('--differing', type=int, default=0, metavar='N', help='verdicts per round that may differ')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
