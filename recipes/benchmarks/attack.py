"""PGD compared with foolbox, torchattacks, ART and adv-lib: time, and number of robust images under each.

    python recipes/benchmarks/attack.py --steps 10 40 --output docs/tables/attack.md

All attacks get the same images, radius, step size (2.5 eps / steps) and number of steps, and one random start in the
Linf ball. Only the first network is timed. Before that, every attack must stay in the ball, and PGD of this package
must raise the loss as far as a textbook loop without a random start does. Times are divided by the floor: the
time of as many forward and backward passes and nothing else. The floor is timed twice. Libraries that are not installed
are left out; they do not need all of their requirements:

    pip install --no-deps --target PEERS foolbox eagerpy torchattacks adversarial-robustness-toolbox six adv-lib
    PYTHONPATH=PEERS python recipes/benchmarks/attack.py
"""
import argparse
import functools
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import _plain_loop
import torch
from _networks import Attack, Network, cifar, digits, peers, random_model, step_size
from _timing import Table, new_parser, ratios, run, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf.attacks import PGD, frozen_parameters, parse_eps


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, early_stop: bool = False) -> Tensor:
    return PGD(eps=eps, steps=steps, early_stop=early_stop)(model, x, y)


def floor(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Passes of an attack without anything else."""
    with frozen_parameters(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(x), y, reduction='sum'), x)
    return x


@torch.no_grad()
def only_correct(network: Network) -> Network:
    rows = network.model(network.x).argmax(1) == network.y
    return network._replace(x=network.x[rows], y=network.y[rows])


def attacked(network: Network, attack: Attack, eps: str, steps: int) -> Tensor:
    """Attacked images; ValueError if they are outside the ball."""
    torch.manual_seed(0)
    x_adv = attack(network.model, network.x, network.y, parse_eps(eps), steps)
    if (x_adv - network.x).abs().max() > parse_eps(eps) + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
        raise ValueError(f'an attack left the ball of radius {eps}; nothing was timed.')
    return x_adv


def check(network: Network, attacks: dict[str, Attack], steps: int) -> None:
    """Raise ValueError if an attack leaves the ball, or PGD raises the loss less or more than a textbook loop."""
    _, model, x, y, (*_, radius) = network
    for attack in attacks.values():
        attacked(network, attack, radius, steps)
    eps = parse_eps(radius)
    textbook = _plain_loop.attacked(model, x, y, eps, steps, step_size(eps, steps), random_start=False)
    x_adv = PGD(eps=eps, steps=steps, random_start=False)(model, x, y)
    with torch.no_grad():
        clean, expected, found = (float(F.cross_entropy(model(images), y)) for images in (x, textbook, x_adv))
    if not abs(found - expected) <= 0.02 * (expected - clean):
        raise ValueError(f'PGD raises the loss from {clean:.4g} to {found:.4g}, a textbook loop to {expected:.4g}; '
                         'nothing was timed.')


def time_table(network: Network, attacks: dict[str, Attack], steps: int, images: int, rounds: int) -> Table:
    """Time of every attack, each round on the next images."""
    eps = parse_eps(network.eps[-1])

    def turn(attack: Attack, number: int) -> Tensor:
        rows = torch.arange(number * images, (number + 1) * images) % len(network.x)
        return attack(network.model, network.x[rows], network.y[rows], eps, steps)

    attacks = {'floor': floor, 'floor, second time': floor, **attacks}
    times = take_turns({name: functools.partial(turn, attack) for name, attack in attacks.items()}, rounds)
    table = Table(f'Time of PGD-{steps} at eps {network.eps[-1]}, {images} images per batch ({network.title}):')
    for name, taken in times.items():
        table.add(name, '÷ floor', ratios(taken, times['floor']))
        table.add(name, 'speed', [images / t for t in taken], 'images/s')
    return table


def robust_table(network: Network, attacks: dict[str, Attack], steps: int) -> Table:
    """Images that are still classified correctly under every attack."""
    table = Table(f'Robust images of {len(network.x)} under PGD-{steps} ({network.title}):')
    for (name, attack), eps in itertools.product(attacks.items(), network.eps):
        x_adv = attacked(network, attack, eps, steps)
        table.add(name, f'eps {eps}', [len(only_correct(network._replace(x=x_adv)).x)])
    return table


def measure(args: argparse.Namespace) -> Iterator[Table]:
    warnings.simplefilter('ignore')  # from the other libraries
    attacks: dict[str, Attack] = {
        'timm_paf': ours, 'timm_paf, early_stop': functools.partial(ours, early_stop=True), **peers()}
    makers: dict[str, Callable[[str], Network]] = {'cifar': cifar, 'digits': digits, 'model': functools.partial(
        random_model, name=args.model, images=2 * args.timing_images)}
    for number, name in enumerate(args.subjects):
        network = makers[name](args.device)
        network = only_correct(network._replace(eps=args.eps or network.eps))
        for steps in args.steps:
            if number == 0:
                first = network._replace(x=network.x[:args.timing_images], y=network.y[:args.timing_images])
                check(first, attacks, steps)
                yield time_table(network, attacks, steps, args.timing_images, args.rounds)
            if args.counts and name != 'model':
                yield robust_table(network, attacks, steps)


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=11)
    parser.add_argument('--steps', type=int, nargs='+', default=[10], help='PGD steps')
    parser.add_argument('--timing-images', type=int, default=2, metavar='N', help='batch size of the timing')
    parser.add_argument(
        '--subjects', nargs='+', choices=('cifar', 'digits', 'model'), default=['cifar', 'digits'],
        help="pyautoattack's ResNet-18 with foolbox's 20 images; a small network trained here on the digits; --model "
             'with random weights on random images, only for times')
    parser.add_argument('--model', default='resnet18_relu', help='model for the subject "model"')
    parser.add_argument('--eps', nargs='+', help='radii instead of those of each network; the last one is timed')
    parser.add_argument('--counts', action=argparse.BooleanOptionalAction, default=True, help='count robust images')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
