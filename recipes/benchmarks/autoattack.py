"""AutoAttack of this package compared with pyautoattack called directly: results and time.

    python recipes/benchmarks/autoattack.py --checkpoint output/digits/model_best.pth.tar --n-examples 32
    python recipes/benchmarks/autoattack.py --trained resnet18_pssilu --image-size 32 --device cuda --rounds 3

Both run in one process on the same images with the same seed, batch size and components. Every round takes the next
images, and the two take turns in running first. If they disagree on an image, no time is printed; --differing N allows
N such images per round, for devices on which rounding depends on the batch size.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from _networks import cifar, digits
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


def measure(args: argparse.Namespace) -> Table:
    if args.n_examples < 1:
        raise ValueError(f'--n-examples {args.n_examples}: expected 1 or more.')
    title, model, images, labels, (*_, radius) = cifar(args.device) if args.network else digits(
        args.device, args.trained or '', args.checkpoint, args.image_size, args.epochs)
    if not args.network:
        radius = '0.2' if args.checkpoint is None else str(read_checkpoint(args.checkpoint)['args']['eps'])
    eps = parse_eps(args.eps or radius, norm=args.norm)
    args.which = {'version': 'custom', 'attacks': args.attacks} if args.attacks else {}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    robust = differing = 0
    with torch.no_grad():  # kernels are compiled before the clock starts
        model(images[:args.batch_size])
    for number in range(args.rounds):
        rows = torch.arange(number * args.n_examples, (number + 1) * args.n_examples) % len(images)
        x, y = images.cpu()[rows], labels.cpu()[rows]
        correct: dict[str, Tensor] = {}
        for side in list(SIDES)[::-1 if number % 2 else 1]:
            started = timer()
            correct[side] = SIDES[side](model, x, y, eps, args)
            times[side].append(timer() - started)
        other = correct['here'] != correct['package']
        if int(other.sum()) > args.differing:
            raise ValueError(f'the results for images {rows[other].tolist()} differ; no time is printed.')
        robust, differing = robust + int(correct['here'].sum()), differing + int(other.sum())
    table = Table(f'{args.rounds} rounds of {args.n_examples} images, {args.norm} {args.eps or radius} ({title}), '
                  f'{robust} robust, {differing} results differ:')
    table.add('time', 'here ÷ package', ratios(times['here'], times['package']))
    table.add('time', 'package', times['package'], 's')
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--checkpoint', type=Path, metavar='FILE', help='checkpoint of adv_train.py on the digits')
    source.add_argument('--trained', metavar='NAME', help='model to train here on the digits')
    source.add_argument('--network', action='store_true', help="CIFAR-10 network of pyautoattack, foolbox's images")
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
