"""PGD compared with foolbox, torchattacks, ART and adv-lib: time, and images that each leaves robust.

    python recipes/benchmarks/attack.py --steps 10 40 --output docs/tables/attack.md

All attacks get the same images, radius, step size (2.5 eps / steps) and number of steps, and one random start in the
Linf ball. The networks are `cifar`, the ResNet-18 that pyautoattack ships with the 20 images that foolbox ships;
`digits`, a small network trained here on the embedded digits, or that of --checkpoint; and, for times alone, `model`,
which is --model as timm makes it, on random images.

Before anything is timed, every attack must stay in the ball, and PGD of this package must raise the loss as far as a
textbook loop without a random start does. Times are divided by the floor of the same round: as many forward and
backward passes to the input and nothing else; the floor is timed twice. Only the first network is timed. Libraries that
are not installed are left out; they do not need all of their requirements:

    pip install --no-deps --target PEERS foolbox eagerpy torchattacks adversarial-robustness-toolbox six adv-lib
    PYTHONPATH=PEERS python recipes/benchmarks/attack.py
"""
import argparse
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from _networks import Attack, Subject, cifar, digits, peers, step_size
from _timing import Table, new_parser, peak_bytes, ratios, run, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf.attacks import PGD, frozen_parameters, parse_eps

FLOOR = 'floor'


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps)(model, x, y)


def early_stop(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps, early_stop=True)(model, x, y)


def floor(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Passes of an attack without anything else."""
    with frozen_parameters(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(x), y, reduction='sum'), x)
    return x


def textbook(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD without a random start."""
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction='sum'), x_adv)
        x_adv = (x_adv.detach() + step_size(eps, steps) * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv.detach()


def random_model(device: str, name: str, images: int) -> Subject:
    """Network with its first weights on random images, whose labels are its own predictions."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(device).eval()
    x = torch.rand(2 * images, 3, 32, 32, device=device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(images)])
    return Subject(f'{name}, random weights and images', model, x, y, ['8/255'])


@torch.no_grad()
def only_correct(subject: Subject) -> Subject:
    """Subject with the images that its network classifies correctly."""
    rows = subject.model(subject.x).argmax(1) == subject.y
    return subject._replace(x=subject.x[rows], y=subject.y[rows])


def attacked(subject: Subject, attack: Attack, eps: str, steps: int) -> Tensor:
    """Attacked images; ValueError if they are outside the ball."""
    torch.manual_seed(0)
    x_adv = attack(subject.model, subject.x, subject.y, parse_eps(eps), steps)
    if (x_adv - subject.x).abs().max() > parse_eps(eps) + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
        raise ValueError(f'an attack left the ball of radius {eps}; nothing was timed.')
    return x_adv


def robust(subject: Subject, attack: Attack, eps: str, steps: int) -> int:
    """Number of images that the network classifies correctly under an attack."""
    x_adv = attacked(subject, attack, eps, steps)
    with torch.no_grad():
        return int((subject.model(x_adv).argmax(1) == subject.y).sum())


def check(subject: Subject, attacks: dict[str, Attack], steps: int) -> None:
    """Raise ValueError if an attack leaves the ball, or PGD raises the loss otherwise than a textbook loop."""
    eps = subject.eps[-1]
    for attack in attacks.values():
        attacked(subject, attack, eps, steps)
    same_start = PGD(eps=eps, steps=steps, step_size=step_size(parse_eps(eps), steps), random_start=False)
    images = (subject.x, attacked(subject, textbook, eps, steps), same_start(subject.model, subject.x, subject.y))
    with torch.no_grad():
        clean, expected, found = (float(F.cross_entropy(subject.model(x), subject.y)) for x in images)
    if not abs(found - expected) <= 0.02 * (expected - clean):
        raise ValueError(f'PGD raises the loss from {clean:.4g} to {found:.4g}, a textbook loop to {expected:.4g}; '
                         'nothing was timed.')


def time_table(subject: Subject, attacks: dict[str, Attack], steps: int, images: int, rounds: int) -> Table:
    """Time and memory of every attack, each round on the next images."""
    eps, device = parse_eps(subject.eps[-1]), subject.x.device
    each: dict[str, Attack] = {FLOOR: floor, 'floor, second time': floor, **attacks}

    def turn(attack: Attack) -> Callable[[int], Tensor]:
        def call(number: int) -> Tensor:
            rows = torch.arange(number * images, (number + 1) * images, device=device) % len(subject.x)
            return attack(subject.model, subject.x[rows], subject.y[rows], eps, steps)
        return call

    times = take_turns({name: turn(attack) for name, attack in each.items()}, rounds)
    table = Table(f'Time of PGD-{steps} at eps {subject.eps[-1]}, {images} images per batch ({subject.title})')
    for name, taken in times.items():
        table.add(name, '÷ floor', ratios(taken, times[FLOOR]))
        table.add(name, 'speed', [images / t for t in taken], 'images/s')
        if device.type == 'cuda':
            peak = peak_bytes(functools.partial(turn(each[name]), 0), device)
            table.add(name, 'most allocated', [peak / 2**20], 'MiB')
    if device.type == 'cpu':
        for norm, radius in (('linf', 4 / 255), ('l2', 0.5), ('l1', 12.)):
            extra = processor_time_added(subject, norm, radius, steps, images)
            table.add(f'work besides the passes, {norm}', 'processor time ÷ passes', [100 * extra], '%')
    return table


def processor_time_added(subject: Subject, norm: str, eps: float, steps: int, images: int) -> float:
    """Processor time of PGD's own work, measured on a linear network, over that of the passes through the real one."""
    x, y = subject.x[:images], subject.y[:images]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).eval()
    attack = PGD(eps=eps, norm=norm, steps=steps)

    def used(call: Callable[[], object]) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started
    added = statistics.median(
        used(lambda: attack(linear, x, y)) - used(lambda: floor(linear, x, y, eps, steps)) for _ in range(15))
    return added / statistics.median(used(lambda: floor(subject.model, x, y, eps, steps)) for _ in range(3))


def robust_table(subject: Subject, attacks: dict[str, Attack], steps: int) -> Table:
    """Images that stay correctly classified under every attack."""
    table = Table(f'Robust images of {len(subject.x)} under PGD-{steps} ({subject.title})')
    for name, attack in attacks.items():
        for eps in subject.eps:
            table.add(name, f'eps {eps}', [robust(subject, attack, eps, steps)])
    return table


def measure(args: argparse.Namespace) -> list[Table]:
    warnings.simplefilter('ignore')  # from the other libraries
    attacks = {'timm_paf': ours, 'timm_paf, early_stop': early_stop, **peers()}
    tables = []
    for number, name in enumerate(args.subjects):
        subject = {
            'cifar': lambda: cifar(args.device),
            'digits': lambda: digits(args.device, checkpoint=args.checkpoint),
            'model': lambda: random_model(args.device, args.model, args.timing_images)}[name]()
        subject = only_correct(subject._replace(eps=args.eps or subject.eps))
        for steps in args.steps:
            if number == 0:
                first = subject._replace(x=subject.x[:args.timing_images], y=subject.y[:args.timing_images])
                check(first, attacks, steps)
                tables.append(time_table(subject, attacks, steps, args.timing_images, args.rounds))
            if args.counts and name != 'model':
                tables.append(robust_table(subject, attacks, steps))
    return tables


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=11)
    parser.add_argument('--steps', type=int, nargs='+', default=[10], help='PGD steps')
    parser.add_argument('--timing-images', type=int, default=2, metavar='N', help='batch size of the timing')
    parser.add_argument('--subjects', nargs='+', choices=('cifar', 'digits', 'model'), default=['cifar', 'digits'])
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='checkpoint of adv_train.py for digits')
    parser.add_argument('--model', default='resnet18_relu', help='model for the subject "model"')
    parser.add_argument('--eps', nargs='+', help='radii instead of those of each network; the last one is timed')
    parser.add_argument('--counts', action=argparse.BooleanOptionalAction, default=True, help='count robust images')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
