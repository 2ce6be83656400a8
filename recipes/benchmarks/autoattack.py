"""AutoAttack of this package compared with pyautoattack called directly: results and time.

    python recipes/benchmarks/autoattack.py --checkpoint output/digits/model_best.pth.tar --n-examples 32
    python recipes/benchmarks/autoattack.py --checkpoint FILE --archive test.npz --n-examples 512 --device cuda

Both run in one process on the same images with the same seed, batch size and components. Every round takes the next
images, and the two take turns in running first. If they disagree on an image, no time is printed; --differing N allows
N such images per round, for devices on which rounding depends on the batch size. With --limit the package is stopped at
the end of that time, and the ratio is then an upper bound, without a comparison of the images.
"""
import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from _networks import archive, cifar, digits
from _timing import Table, new_parser, ratios, run
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.utils.benchmark import timer

from timm_paf.attacks import autoattack, parse_eps
from timm_paf.models import read_checkpoint

NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}


def directly(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> Tensor:
    """Robust images (N,) by pyautoattack, as its documentation calls it."""
    adversary = AutoAttack(model, norm=NORMS[args.norm], eps=eps, seed=0, device=args.device, **args.which)
    x_adv = adversary.run_standard_evaluation(x, y, batch_size=args.batch_size)[0]
    with torch.no_grad():
        return torch.cat([model(part.to(args.device)).argmax(1).cpu() for part in x_adv.split(args.batch_size)]) == y


def here(model: nn.Module, x: Tensor, y: Tensor, eps: float, args: argparse.Namespace) -> Tensor:
    """Robust images (N,) by timm_paf."""
    result = autoattack(model, x, y, eps=eps, norm=args.norm, batch_size=args.batch_size, seed=0, **args.which)
    return result.robust.cpu()


SIDES = {'here': here, 'package': directly}


class Limited(nn.Module):
    """Model that can be called until a time of `time.monotonic`."""

    def __init__(self, model: nn.Module, until: float) -> None:
        super().__init__()
        self.model, self.until = model, until

    def forward(self, x: Tensor) -> Tensor:
        if time.monotonic() > self.until:
            raise TimeoutError
        return self.model(x)


def measure(args: argparse.Namespace) -> Iterator[Table]:
    if args.n_examples < 1:
        raise ValueError(f'--n-examples {args.n_examples}: expected 1 or more.')
    if args.archive is not None and args.checkpoint is None:
        raise ValueError(f'--archive {args.archive}: it belongs to --checkpoint.')
    if args.network:
        title, model, images, labels, (*_, radius) = cifar(args.device)
    elif args.archive is not None:
        title, model, images, labels, (radius,) = archive(args.device, args.checkpoint, args.archive)
    else:
        title, model, images, labels, _ = digits(
            args.device, args.trained or '', args.checkpoint, args.image_size, args.epochs)
        radius = '0.2' if args.checkpoint is None else str(read_checkpoint(args.checkpoint)['args']['eps'])
    eps = parse_eps(args.eps or radius, norm=args.norm)
    args.which = {'version': 'custom', 'attacks': args.attacks} if args.attacks else {}
    models = {'here': model, 'package': Limited(model, args.until)}
    robust = differing = 0
    with torch.no_grad():  # kernels are compiled before the clock starts
        model(images[:args.batch_size])
    found: list[dict[str, float]] = []
    for number in range(args.rounds):
        rows = torch.arange(number * args.n_examples, (number + 1) * args.n_examples) % len(images)
        x, y = images.cpu()[rows], labels.cpu()[rows]
        correct: dict[str, Tensor] = {}
        times: dict[str, float] = {}
        for side in list(SIDES)[::-1 if number % 2 else 1]:
            started = timer()
            with contextlib.suppress(TimeoutError):
                correct[side] = SIDES[side](models[side], x, y, eps, args)
            times[side] = timer() - started
        stopped = 'package' not in correct
        if not stopped:
            other = correct['here'] != correct['package']
            if int(other.sum()) > args.differing:
                raise ValueError(f'the results for images {rows[other].tolist()} differ; no time is printed.')
            differing += int(other.sum())
        if stopped and found:
            break
        robust += int(correct['here'].sum())
        found.append(times)
        table = Table(
            f'{len(found)} rounds of {args.n_examples} images, {args.norm} {args.eps or radius} ({title}), '
            f'{robust} robust, ' + ('the package was stopped:' if stopped else f'{differing} results differ:'))
        here, package = ([each[side] for each in found] for side in SIDES)
        table.add('time', f'here ÷ package{", at most" if stopped else ""}', ratios(here, package))
        table.add('time', 'here', here, 's')
        table.add('time', 'package', package, 's')
        if not stopped:
            table.add('results that differ', 'images', [differing])
            table.add('results that differ', 'of', [len(found) * args.n_examples])
        if stopped or time.monotonic() > args.until:
            break
    yield table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', type=Path, metavar='FILE', help='checkpoint of adv_train.py on the digits')
    source.add_argument('--trained', metavar='NAME', help='model to train here on the digits')
    source.add_argument('--network', action='store_true', help="CIFAR-10 network of pyautoattack, foolbox's images")
    parser.add_argument('--archive', type=Path, metavar='FILE', help='images for --checkpoint; unset: digits')
    parser.add_argument('--epochs', type=int, default=20, help='epochs of that training')
    parser.add_argument('--image-size', type=int, default=8, metavar='N', help='height and width of the digits')
    parser.add_argument('--n-examples', type=int, default=32, help='images per round')
    parser.add_argument('--batch-size', type=int, default=250, help='images per batch')
    parser.add_argument('--eps', help='radius; unset: that of the training, or 4/255')
    parser.add_argument('--norm', default='linf', choices=tuple(NORMS), help='norm of the ball')
    parser.add_argument('--attacks', nargs='+', help='components; unset: those of the standard version')
    parser.add_argument('--differing', type=int, default=0, metavar='N', help='images per round that may differ')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
