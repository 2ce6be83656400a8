"""PGD beside that of foolbox, torchattacks, ART and adv-lib: how long it takes, and how many images it leaves standing.

    python recipes/benchmarks/attack.py --steps 10 40 --output docs/tables/attack.md

All attack the same images with the same radius, step size (2.5 eps / steps) and number of steps, from one random start
in the Linf ball. Networks: the CIFAR-10 ResNet-18 that pyautoattack ships, which is not robust, on the 20 CIFAR-10
images that foolbox ships (`cifar`); a small convolutional network trained here in a minute with PGD-10 at eps 0.2 on
the embedded digits, on their test split, or with --checkpoint one that adv_train.py has trained (`digits`); and, for
times alone, --model NAME as timm makes it, on random images (`model`).

Before anything is timed every attack must stay in the ball, and that of this package must raise the loss as far as a
textbook loop does from the same start. Times are those of the first network asked for, over the floor in the same
round: as many bare passes forward and back to the input. All take turns on images that rotate; the floor itself does so
twice. The roofline is what those passes need at the rate of a large matrix product or the bandwidth of a copy, measured
in the same rounds, as a share of the time. Peers that cannot be imported are left out and named; they need not be
installed with all that they ask for:

    pip install --no-deps --target PEERS foolbox eagerpy torchattacks adversarial-robustness-toolbox six adv-lib
    PYTHONPATH=PEERS python recipes/benchmarks/attack.py
"""
import argparse
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _attack_peers import AGAIN, EARLY, FLOOR, OURS, Attack, contestants, floor, step, textbook
from _benchmarking import (
    Figure,
    chosen_device,
    peak_bytes,
    ratios,
    seconds,
    shipped_network,
    summary_line,
    write_figures,
)
from _roofline import Machine, math_mode, work_of

import timm_paf  # noqa: F401
from timm_paf.attacks import PGD, parse_eps
from timm_paf.data import digits_splits
from timm_paf.engine.settings import build_model
from timm_paf.models import load_weights, read_checkpoint


class Subject(NamedTuple):
    """A network in eval mode, images that it classifies correctly, and the radii to attack them with."""
    title: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: list[str]


def cifar(device: torch.device) -> Subject:
    model, x, y = shipped_network()
    return kept(Subject(
        'ResNet-18, CIFAR-10, not robust', model.to(device), x.to(device), y.to(device),
        ['0.5/255', '1/255', '2/255', '4/255']))


def digits(device: torch.device, checkpoint: Path | None) -> Subject:
    splits = digits_splits()
    eps = ['0.05', '0.1', '0.2', '0.3']
    if checkpoint is not None:
        model = timm.create_model(str(read_checkpoint(checkpoint)['args']['model']), num_classes=10, in_chans=1)
        load_weights(model, checkpoint)
        title = f'{checkpoint.name}, digits'
        model = model.to(device)
    else:
        model = trained(splits.train.images.to(device), splits.train.labels.to(device))
        title = 'convolutional network, digits, robust'
    return kept(Subject(title, model.eval(), splits.test.images.to(device), splits.test.labels.to(device), eps))


def named(device: torch.device, name: str, images: int) -> Subject:
    """A network as it begins, on random images, whose labels are what it says of them."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, in_chans=3).to(device).eval()
    x = torch.rand(2 * images, 3, 32, 32, device=device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(images)])
    return Subject(f'{name}, random weights and images', model, x, y, ['8/255'])


def trained(x: Tensor, y: Tensor, *, epochs: int = 20) -> nn.Module:
    """PGD-10 training at eps 0.2."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 128), nn.SiLU(), nn.Linear(128, 10)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attack = PGD(eps=0.2)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(x)).to(x.device).split(128):
            x_adv = attack(model, x[rows], y[rows])
            optimizer.zero_grad()
            functional.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def correct(subject: Subject, x: Tensor) -> Tensor:
    return subject.model(x).argmax(1) == subject.y


def kept(subject: Subject) -> Subject:
    rows = correct(subject, subject.x)
    return subject._replace(x=subject.x[rows], y=subject.y[rows])


def inside(subject: Subject, attack: Attack, x: Tensor, y: Tensor, text: str, steps: int) -> Tensor:
    """The attacked images; RuntimeError if they are not in the ball."""
    eps = parse_eps(text)
    torch.manual_seed(0)
    x_adv = attack(subject.model, x, y, eps, steps)
    if (x_adv - x).abs().max() > eps + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
        raise RuntimeError(f'an attack has left the ball of radius {text}.')
    return x_adv


def standing(subject: Subject, attack: Attack, steps: int) -> list[int]:
    """Images that the model still classifies correctly, at every radius."""
    return [
        int(correct(subject, inside(subject, attack, subject.x, subject.y, text, steps)).sum()) for text in subject.eps]


@torch.no_grad()
def loss(subject: Subject, x: Tensor, y: Tensor) -> float:
    return float(functional.cross_entropy(subject.model(x), y))


def check(subject: Subject, attacks: dict[str, Attack], steps: int, images: int) -> None:
    """Raise RuntimeError if an attack leaves the ball, or ours gains another loss than a textbook loop does."""
    text = subject.eps[-1]
    x, y = subject.x[:images], subject.y[:images]
    for attack in attacks.values():
        inside(subject, attack, x, y, text, steps)
    without_start = PGD(eps=text, steps=steps, step_size=step(parse_eps(text), steps), random_start=False)
    clean, right = loss(subject, x, y), loss(subject, textbook(subject.model, x, y, parse_eps(text), steps), y)
    found = loss(subject, without_start(subject.model, x, y), y)
    if not abs(found - right) <= 0.02 * (right - clean):
        raise RuntimeError(f'PGD raises the loss from {clean:.4g} to {found:.4g}, a textbook loop to {right:.4g}.')


class Times(NamedTuple):
    """Seconds of every attack in every round, the most that each allocates, and what the machine did meanwhile."""
    seconds: dict[str, list[float]]
    peaks: dict[str, int | None]
    machine: Machine

    def over_floor(self, name: str) -> list[float]:
        """The ratios in the rounds."""
        return ratios(self.seconds[name], self.seconds[FLOOR])


def timed(subject: Subject, attacks: dict[str, Attack], steps: int, *, images: int, rounds: int) -> Times:
    """All take turns in every round, each time on the next images."""
    eps, device = parse_eps(subject.eps[-1]), subject.x.device
    each = {FLOOR: floor, AGAIN: floor, **attacks}
    peaks = {}
    for name, attack in each.items():
        attack(subject.model, subject.x[:images], subject.y[:images], eps, 1)
        peaks[name] = peak_bytes(
            functools.partial(attack, subject.model, subject.x[:images], subject.y[:images], eps, 1), device)
    times = Times({name: [] for name in each}, peaks, Machine(device, ['fp32']))
    names = list(each)
    for i in range(rounds):
        rows = torch.arange(i * images, (i + 1) * images, device=device) % len(subject.x)
        x, y = subject.x[rows], subject.y[rows]
        times.machine.round()
        for name in names[i % len(names):] + names[:i % len(names)]:
            times.seconds[name].append(seconds(
                functools.partial(each[name], subject.model, x, y, eps, steps), device))
    return times


def added(subject: Subject, norm: str, eps: float, *, images: int, steps: int = 10, rounds: int = 15) -> float:
    """Processor time of what a step does beside its pass, as a share of the pass; that of a busy machine as well.

    Measured on a network that costs next to nothing, a linear one for images of the same size.
    """
    x, y = subject.x[:images], subject.y[:images]
    cheap = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).to(x.device).eval()
    attack = PGD(eps=eps, norm=norm, steps=steps)

    def used(call: Callable[[], Tensor]) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started
    more = statistics.median(
        used(lambda: attack(cheap, x, y)) - used(lambda: floor(cheap, x, y, eps, steps)) for _ in range(rounds))
    passes = statistics.median(used(lambda: floor(subject.model, x, y, eps, steps)) for _ in range(3))
    return more / passes


def shares(subject: Subject, times: Times, name: str, steps: int, images: int) -> list[float]:
    """Share of the roofline in every round, in percent."""
    flops, moved = work_of(subject.model, subject.x.shape[1:]).floor(images, (steps, steps, 0), 4)
    return [100 * share for share in times.machine.shares(times.seconds[name], flops, moved, 'fp32')]


def time_table(subject: Subject, times: Times, steps: int, *, images: int) -> list[str]:
    medians = {name: statistics.median(times.over_floor(name)) for name in times.seconds}
    rounds = len(times.seconds[FLOOR])
    lines = [
        f'Time of PGD-{steps} over the floor at eps {subject.eps[-1]}, {images} images ({subject.title}), median and '
        f'standard deviation of {rounds} rounds; {times.machine}:', '',
        '| attack | time / floor | of the roofline, % | most allocated in a step, MiB |',
        '| --- | ---: | ---: | ---: |']
    for name in medians:
        peak = times.peaks[name]
        lines.append(
            f'| {name} | {medians[name]:.2f} ± {statistics.pstdev(times.over_floor(name)):.2f} | '
            + ('' if name == EARLY else f'{statistics.median(shares(subject, times, name, steps, images)):.0f}')
            + f' | {"" if peak is None else f"{peak / 2**20:.0f}"} |')
    lines.append('')
    peers = [medians[name] for name in medians if name not in (OURS, EARLY, FLOOR, AGAIN)]
    if peers:
        lines += [f'With early_stop {min(peers) / medians[EARLY]:.1f} times as fast as the fastest peer.', '']
    if subject.x.device.type == 'cpu':
        share = ', '.join(
            f'{100 * added(subject, norm, eps, images=images):.2f} % in {norm}'
            for norm, eps in (('linf', 4 / 255), ('l2', 0.5), ('l1', 12.)))
        lines += [f'Processor time of all that the loop does beside its passes, as a share of them: {share}.', '']
    return lines


def figures(subject: Subject, times: Times, steps: int, images: int) -> list[Figure]:
    """Everything that is timed, by name."""
    found = times.machine.figures()
    for name, taken in times.seconds.items():
        found += [
            Figure(f'{name}: over the floor', times.over_floor(name), 'times'),
            Figure(f'{name}: images/s', [images / t for t in taken], 'images/s'),
            Figure(f'{name}: share of the roofline', shares(subject, times, name, steps, images), '%')]
        peak = times.peaks[name]
        if peak is not None:
            found.append(Figure(f'{name}: most allocated in a step', [peak / 2**20], 'MiB'))
    return found


def standing_table(subject: Subject, attacks: dict[str, Attack], steps: int) -> list[str]:
    lines = [
        f'Images of {len(subject.x)} that stand under PGD-{steps} ({subject.title}):', '',
        '| attack | ' + ' | '.join(f'eps {text}' for text in subject.eps) + ' |',
        '| --- |' + ' ---: |' * len(subject.eps)]
    for name, attack in attacks.items():
        lines.append(f'| {name} | ' + ' | '.join(str(n) for n in standing(subject, attack, steps)) + ' |')
        print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, '']


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, nargs='+', default=[10], help='of PGD')
    parser.add_argument('--rounds', type=int, default=11, help='rounds of timing; 0 for none')
    parser.add_argument('--timing-images', type=int, default=2, metavar='N', help='images that are timed')
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='of adv_train.py on digits, to attack as well')
    parser.add_argument('--subjects', nargs='+', choices=('cifar', 'digits', 'model'), default=['cifar', 'digits'])
    parser.add_argument('--model', default='resnet18_relu', help='of the subject model')
    parser.add_argument('--eps', nargs='+', help='radii, in place of those of each network')
    parser.add_argument('--counts', action=argparse.BooleanOptionalAction, default=True, help='count standing images')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1, help='of the CPU')
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the tables there as well')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write what is timed there as well')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.simplefilter('ignore')
    attacks, missing = contestants()
    command = None if argv is None else [__file__, *argv]
    try:
        device = chosen_device(args.device)
        with math_mode('fp32'):
            lines, measured = report(args, device, attacks)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    lines += [f'{summary_line(device, command)}.', '', *missing]
    print('\n'.join(lines))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text('\n'.join(lines).rstrip() + '\n')
    if args.json:
        write_figures(args.json, measured, device, command)
    return 0


def report(
        args: argparse.Namespace, device: torch.device, attacks: dict[str, Attack]) -> tuple[list[str], list[Figure]]:
    """The tables' lines, and what was timed."""
    lines: list[str] = []
    measured: list[Figure] = []
    for number, name in enumerate(args.subjects):
        subject = {'cifar': lambda: cifar(device), 'digits': lambda: digits(device, args.checkpoint),
                   'model': lambda: named(device, args.model, args.timing_images)}[name]()
        subject = subject._replace(eps=args.eps or subject.eps)
        for steps in args.steps if number == 0 and args.rounds else ():
            check(subject, attacks, steps, args.timing_images)
            times = timed(subject, attacks, steps, images=args.timing_images, rounds=args.rounds)
            lines += time_table(subject, times, steps, images=args.timing_images)
            found = figures(subject, times, steps, args.timing_images)
            measured += found if steps == args.steps[0] else [
                figure._replace(name=f'{figure.name} (PGD-{steps})') for figure in found]
        if args.counts and name != 'model':
            for steps in args.steps:
                lines += standing_table(subject, attacks, steps)
    return lines, measured


if __name__ == '__main__':
    sys.exit(main())
