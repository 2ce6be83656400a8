"""PGD beside that of foolbox, torchattacks, ART and adv-lib: how long it takes, and how many images it leaves standing.

    python recipes/benchmarks/attack.py --steps 10 --output docs/tables/attack.md

All attack the same images with the same radius, step size (2.5 eps / steps) and number of steps, from one random start
in the Linf ball. Two networks: the CIFAR-10 ResNet-18 that pyautoattack ships, which is not robust, on the 20 CIFAR-10
images that foolbox ships; and a small convolutional network trained here in a minute with PGD-10 at eps 0.2 on the
embedded digits, on their test split, or with --checkpoint one that adv_train.py has trained. Times are for the first
images of the ResNet, over the floor in the same round: as many bare passes forward and back to the input. All take
turns; the floor itself does so twice. Peers that cannot be imported are left out and named; they need not be installed
with all that they ask for:

    pip install --no-deps --target PEERS foolbox eagerpy torchattacks adversarial-robustness-toolbox six adv-lib
    PYTHONPATH=PEERS python recipes/benchmarks/attack.py
"""
import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import shipped_network

import timm_paf  # noqa: F401
from timm_paf.attacks import PGD, frozen_parameters, parse_eps
from timm_paf.data import digits_splits
from timm_paf.models import load_weights, read_checkpoint

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]  # model, x, y, eps, steps -> x_adv
OURS, EARLY, AGAIN = 'timm_paf', 'timm_paf, early_stop', 'the floor again'


class Subject(NamedTuple):
    """A network in eval mode, images that it classifies correctly, and the radii to attack them with."""
    title: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: list[str]


def step(eps: float, steps: int) -> float:
    return 2.5 * eps / steps


def floor(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    with frozen_parameters(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            torch.autograd.grad(functional.cross_entropy(model(x), y, reduction='sum'), x)
    return x


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps)(model, x, y)


def early_stop(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    return PGD(eps=eps, steps=steps, early_stop=True)(model, x, y)


def foolbox_attack() -> Attack:
    import foolbox

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        subject = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=step(eps, steps), steps=steps)
        return pgd.run(subject, x, foolbox.criteria.Misclassification(y), epsilon=eps)
    return attack


def torchattacks_attack() -> Attack:
    import torchattacks

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return torchattacks.PGD(model, eps=eps, alpha=step(eps, steps), steps=steps)(x, y)
    return attack


def art_attack() -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        classes = model(x[:1]).shape[1]
        estimator = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), x.shape[1:], classes, clip_values=(0, 1), device_type='cpu')
        pgd = ProjectedGradientDescentPyTorch(
            estimator, eps=eps, eps_step=step(eps, steps), max_iter=steps, num_random_init=1, batch_size=len(x),
            verbose=False)
        return torch.from_numpy(pgd.generate(x.numpy(), y.numpy()))
    return attack


def adv_lib_attack() -> Attack:
    sys.modules.setdefault('visdom', types.ModuleType('visdom'))  # for its plots; imported whether or not it draws
    from adv_lib.attacks import pgd_linf

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        return pgd_linf(model, x, y, ε=eps, steps=steps, random_init=True, absolute_step_size=step(eps, steps))
    return attack


PEERS: dict[str, tuple[str, Callable[[], Attack]]] = {
    'foolbox': ('foolbox', foolbox_attack),
    'torchattacks': ('torchattacks', torchattacks_attack),
    'ART': ('adversarial-robustness-toolbox', art_attack),
    'adv-lib': ('adv-lib', adv_lib_attack),
}


def contestants() -> tuple[dict[str, Attack], list[str]]:
    """Attacks by name, and a line for each peer that is left out."""
    found: dict[str, Attack] = {OURS: ours, EARLY: early_stop}
    missing = []
    for name, (package, load) in PEERS.items():
        try:
            found[f'{name} {importlib.metadata.version(package)}'] = load()
        except ImportError as error:
            missing.append(f'{name} left out: {error}')
    return found, missing


def cifar() -> Subject:
    return kept(Subject(
        'ResNet-18, CIFAR-10, not robust', *shipped_network(), ['0.5/255', '1/255', '2/255', '4/255']))


def digits(checkpoint: Optional[Path]) -> Subject:
    splits = digits_splits()
    eps = ['0.05', '0.1', '0.2', '0.3']
    if checkpoint is not None:
        model = timm.create_model(str(read_checkpoint(checkpoint)['args']['model']), num_classes=10, in_chans=1)
        load_weights(model, checkpoint)
        title = f'{checkpoint.name}, digits'
    else:
        model = trained(splits.train.images.float(), splits.train.labels)
        title = 'convolutional network, digits, robust'
    return kept(Subject(title, model.eval(), splits.test.images.float(), splits.test.labels, eps))


def trained(x: Tensor, y: Tensor, *, epochs: int = 20) -> nn.Module:
    """PGD-10 training at eps 0.2."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64), nn.SiLU(), nn.Flatten(), nn.Linear(1024, 128), nn.SiLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    attack = PGD(eps=0.2)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group['lr'] = 2e-3 * (1 - epoch / epochs)
        for rows in torch.randperm(len(x)).split(128):
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


def standing(subject: Subject, attack: Attack, steps: int) -> list[int]:
    """Images that the model still classifies correctly, at every radius."""
    counts = []
    for text in subject.eps:
        eps = parse_eps(text)
        torch.manual_seed(0)
        x_adv = attack(subject.model, subject.x, subject.y, eps, steps)
        if (x_adv - subject.x).abs().max() > eps + 1e-6 or x_adv.min() < 0 or x_adv.max() > 1:
            raise RuntimeError(f'an attack has left the ball of radius {text}.')
        counts.append(int(correct(subject, x_adv).sum()))
    return counts


def ratios(
        subject: Subject, attacks: dict[str, Attack], steps: int, *, images: int, rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Median and standard deviation over rounds of the time over the floor's in the same round; all take turns."""
    eps = parse_eps(subject.eps[-1])
    x, y = subject.x[:images], subject.y[:images]
    timed = {'floor': floor, AGAIN: floor, **attacks}
    for attack in timed.values():
        attack(subject.model, x, y, eps, 1)
    found: dict[str, list[float]] = {name: [] for name in timed}
    for i in range(rounds):
        names, seconds = list(timed), {}
        for name in names[i % len(names):] + names[:i % len(names)]:
            started = time.perf_counter()
            timed[name](subject.model, x, y, eps, steps)
            seconds[name] = time.perf_counter() - started
        for name in names:
            found[name].append(seconds[name] / seconds['floor'])
    return (
        {name: statistics.median(values) for name, values in found.items()},
        {name: statistics.pstdev(values) for name, values in found.items()})


def added(subject: Subject, norm: str, eps: float, *, images: int, steps: int = 10, rounds: int = 15) -> float:
    """Processor time of what a step does beside its pass, as a share of the pass; that of a busy machine as well.

    Measured on a network that costs next to nothing, a linear one for images of the same size.
    """
    x, y = subject.x[:images], subject.y[:images]
    cheap = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).eval()
    attack = PGD(eps=eps, norm=norm, steps=steps)

    def seconds(call: Callable[[], Tensor]) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started
    more = statistics.median(
        seconds(lambda: attack(cheap, x, y)) - seconds(lambda: floor(cheap, x, y, eps, steps)) for _ in range(rounds))
    passes = statistics.median(seconds(lambda: floor(subject.model, x, y, eps, steps)) for _ in range(3))
    return more / passes


def time_table(subject: Subject, attacks: dict[str, Attack], steps: int, *, images: int, rounds: int) -> list[str]:
    medians, spreads = ratios(subject, attacks, steps, images=images, rounds=rounds)
    lines = [
        f'Time of PGD-{steps} over the floor at eps {subject.eps[-1]}, {images} images ({subject.title}), median and '
        f'standard deviation of {rounds} rounds:', '', '| attack | time / floor |', '| --- | ---: |',
        *(f'| {name} | {medians[name]:.2f} ± {spreads[name]:.2f} |' for name in medians if name != 'floor'), '']
    peers = [medians[name] for name in attacks if name not in (OURS, EARLY)]
    if peers:
        lines += [f'With early_stop {min(peers) / medians[EARLY]:.1f} times as fast as the fastest peer.', '']
    shares = ', '.join(
        f'{100 * added(subject, norm, eps, images=images):.2f} % in {norm}'
        for norm, eps in (('linf', 4 / 255), ('l2', 0.5), ('l1', 12.)))
    return [*lines, f'Processor time of all that the loop does beside its passes, as a share of them: {shares}.', '']


def standing_table(subject: Subject, attacks: dict[str, Attack], steps: int) -> list[str]:
    lines = [
        f'Images of {len(subject.x)} that stand under PGD-{steps} ({subject.title}):', '',
        '| attack | ' + ' | '.join(f'eps {text}' for text in subject.eps) + ' |',
        '| --- |' + ' ---: |' * len(subject.eps)]
    for name, attack in attacks.items():
        lines.append(f'| {name} | ' + ' | '.join(str(n) for n in standing(subject, attack, steps)) + ' |')
        print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, '']


def main(argv: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--rounds', type=int, default=11, help='rounds of timing; 0 for none')
    parser.add_argument('--timing-images', type=int, default=2, metavar='N', help='images that are timed')
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='of adv_train.py on digits, to attack as well')
    parser.add_argument('--subjects', nargs='+', choices=('cifar', 'digits'), default=['cifar', 'digits'])
    parser.add_argument('--eps', nargs='+', help='radii, in place of those of each network')
    parser.add_argument('--counts', action=argparse.BooleanOptionalAction, default=True, help='count standing images')
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the tables there as well')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    attacks, missing = contestants()
    lines: list[str] = []
    for name in args.subjects:
        subject = cifar() if name == 'cifar' else digits(args.checkpoint)
        subject = subject._replace(eps=args.eps or subject.eps)
        if name == 'cifar' and args.rounds:
            lines += time_table(subject, attacks, args.steps, images=args.timing_images, rounds=args.rounds)
        if args.counts:
            lines += standing_table(subject, attacks, args.steps)
    lines += [
        f'`python recipes/benchmarks/attack.py {" ".join(argv or sys.argv[1:])}`, {datetime.date.today()}, Python '
        f'{platform.python_version()}, torch {torch.__version__.split("+")[0]}, {os.cpu_count()} cores, 1 thread.',
        '', *missing]
    print('\n'.join(lines))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text('\n'.join(lines).rstrip() + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
