"""What an update of adv_train.py costs: beside a plain loop, its bare passes, and what the machine can do.

    python recipes/benchmarks/train_step.py --models wrn10_2_pssilu
    python recipes/benchmarks/train_step.py --models wrn28_10_relu wrn28_10_pssilu --precisions fp32 tf32 bf16 \
        --ways eager compiled --channels-last --image-size 32 --device cuda

Flags that are not its own, --channels-last among them, go to the recipe, and hold for the bare passes as well where
these are of the model. For each model, precision and way (eager, or compiled by the recipe's --torchcompile) PGD-10
updates are timed in turn with those of a loop written as the paper's authors train (`recipes/_plain_loop.py`):
activations by their formulas in eager operations, float32, one more forward pass in training mode on the clean images
to log their accuracy; and with the passes through the network that PGD-10 needs, 12 forward and 11 backward, and
nothing else. Making the batches and the optimizer are part of an update.

Before anything is timed, the attack of the recipe has to raise the loss as far as that of the plain loop, from the same
weights without a random start, and an update on the same attacked images has to change the weights alike. All take
turns in every round, on batches that rotate; figures are medians over rounds with half the distance of the quartiles,
ratios are taken within a round, with their range. The roofline is the longer of two times: that of the FLOPs of the
convolutions and matrix products in the passes at the rate of a large matrix product in the same precision, and that of
the bytes that these layers read and write at the bandwidth of a copy, both measured in the same rounds; given is its
share of the time of an update. On a GPU the most that an update allocates is given as well.

Images are the embedded digits, half of them synthetic; with --image-size N the digits as colour images of that size.
"""
import argparse
import dataclasses
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import adv_train
from _benchmark_runs import WAYS, colour_archives, endless, flags_of, job_of
from _benchmarking import (
    Figure,
    chosen_device,
    kept_bytes,
    peak_bytes,
    range_text,
    ratios,
    seconds,
    spread,
    summary_line,
    write_figures,
)
from _plain_loop import STEPS, attacked, plain_formulas, plain_update
from _roofline import PRECISIONS, Machine, Work, math_mode, work_of

from timm_paf.data import Batch
from timm_paf.engine.settings import build_model
from timm_paf.engine.step import batches_from

PLAIN, BARE = 'plain loop', ', bare passes'
PASSES = (STEPS + 2, STEPS, 1)  # forward, back to the input, back to the weights
# largest differences from the plain loop, as shares: of what the attack gains, and of how the weights change
TOLERANCE = {'fp32': (0.02, 0.01), 'tf32': (0.1, 0.1), 'bf16': (0.1, 0.3)}


class Contestant(NamedTuple):
    """Something that is timed; `precision` is that of its matrix products."""
    model: str
    precision: str
    way: str
    action: Callable[[], object]

    def __str__(self) -> str:
        return f'{self.model}, {self.precision}, {self.way}'


def bare_passes(model: nn.Module, batch: Batch) -> None:
    """12 forward and 11 backward passes: those of the attack's steps, the update's, and one forward pass alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = batch.x.detach().clone().requires_grad_()
    model.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    for _ in range(STEPS):
        torch.autograd.grad(functional.cross_entropy(model(x), batch.y), x)
    with torch.no_grad():
        model(x)
    for parameter in parameters:
        parameter.requires_grad_(True)
    model.train()
    torch.autograd.grad(functional.cross_entropy(model(batch.x), batch.y), parameters)


def check(engine: adv_train.Run, plain: adv_train.Run, precision: str, label: str) -> None:
    """Raise ValueError if the recipe does not do what the plain loop does, from the same weights.

    Without a random start both attacks have to raise the loss as far (the signs of small gradients differ by rounding,
    so the images themselves need not agree), and on the same attacked images an update has to change the weights alike.
    """
    batch, model, attack = next(endless(plain)), plain.task.trainable_module.eval(), engine.task.attack
    layout = torch.channels_last if engine.config.channels_last else torch.contiguous_format
    with math_mode('fp32'):
        x_adv = attacked(model, batch.x, batch.y, random_start=False)
        change = change_of(plain, lambda: plain_update(model, plain.optimizer, batch, x_adv))
    with math_mode(precision):
        attack.random_start = False
        with engine.updates.precision():
            other = attack(engine.task.trainable_module, batch.x.contiguous(memory_format=layout), batch.y)
        attack.random_start = True
        engine.task.attack = lambda model, x, y: x_adv.contiguous(memory_format=layout)
        other_change = change_of(engine, lambda: engine.updates(batch, 0))
        engine.task.attack = attack
    with math_mode('fp32'), torch.no_grad():
        clean, theirs, ours = (
            float(functional.cross_entropy(model.eval()(x), batch.y)) for x in (batch.x, x_adv, other))
    model.train()
    off = abs(ours - theirs) / (theirs - clean), float((other_change - change).norm() / change.norm())
    if not all(value <= most for value, most in zip(off, TOLERANCE[precision], strict=True)):
        raise ValueError(
            f'{label}: differs from the plain loop by {off[0]:.2%} of what the attack gains and {off[1]:.2%} of the '
            'change of the weights; nothing was timed.')


def change_of(job: adv_train.Run, update: Callable[[], object]) -> Tensor:
    """What an update changes in the weights, which are put back."""
    model = job.task.trainable_module.train()
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    update()
    change = torch.cat([(p.detach() - old).flatten().double() for p, old in zip(parameters, before, strict=True)])
    model.load_state_dict(state)
    job.optimizer.state.clear()
    return change


def contestants(name: str, args: argparse.Namespace, data: Sequence[str], flags: Sequence[str]) -> list[Contestant]:
    """Everything that is timed of one model, checked; the plain loop comes last."""
    plain = job_of(name, args.batch_size, args.device, data)
    plain_formulas(plain.task.trainable_module)
    kept = list(batches_from(plain.batches, 0, 4 * args.updates))
    found = []
    for precision, way in itertools.product(args.precisions, args.ways):
        own = [*data, *flags_of(precision, way, args.backend), *flags]
        engine = job_of(name, args.batch_size, args.device, own)
        if args.check:
            check(engine, plain, precision, f'{name}, {precision}, {way}')
        found.append(Contestant(name, precision, way, several(args.updates, updates_of(engine))))
        if args.passes:
            bare = job_of(name, args.batch_size, args.device, own)
            found.append(Contestant(
                name, precision, f'{way}{BARE}', several(args.updates, passes_of(bare, kept))))
    batches = itertools.cycle(kept)
    loop = several(args.updates, lambda: plain_update(plain.task.trainable_module, plain.optimizer, next(batches)))
    modes = ['tf32', 'fp32'] if 'tf32' in args.precisions else ['fp32']
    return [*found, *(Contestant(name, mode, PLAIN, loop) for mode in modes)]


def several(number: int, action: Callable[[], object]) -> Callable[[], object]:
    """An action so many times."""
    return lambda: [action() for _ in range(number)]


def updates_of(job: adv_train.Run) -> Callable[[], object]:
    """The next update of the recipe at every call."""
    stream, numbers = endless(job), itertools.count()
    return lambda: job.updates(next(stream), next(numbers))


def passes_of(job: adv_train.Run, kept: Sequence[Batch]) -> Callable[[], object]:
    """The bare passes of an update at every call, in the recipe's precision and layout."""
    layout = torch.channels_last if job.config.channels_last else torch.contiguous_format
    stream = itertools.cycle([dataclasses.replace(b, x=b.x.contiguous(memory_format=layout)) for b in kept])

    def action() -> None:
        with job.updates.precision():
            bare_passes(job.task.trainable_module, next(stream))
    return action


@dataclasses.dataclass
class Results:
    """Seconds of every contestant in every round, the most that each allocates, and what the machine did meanwhile."""
    times: dict[Contestant, list[float]]
    peaks: dict[Contestant, int | None]
    machine: Machine


def measure(found: Sequence[Contestant], device: torch.device, precisions: Sequence[str], rounds: int) -> Results:
    """Let all take turns in every round, after two turns each to warm up."""
    peaks = {}
    for one in found:
        with math_mode(one.precision):
            one.action()
            peaks[one] = peak_bytes(one.action, device)
    results = Results({one: [] for one in found}, peaks, Machine(device, precisions))
    for number in range(rounds):
        results.machine.round()
        for one in [*found[number % len(found):], *found[:number % len(found)]]:
            with math_mode(one.precision):
                results.times[one].append(seconds(one.action, device))
    return results


def work(name: str, batch: Tensor) -> Work:
    """The work of a model on images like those of a batch."""
    return work_of(build_model(name, num_classes=10, in_chans=batch.shape[1]), batch.shape[1:])


def figures(results: Results, works: dict[str, Work], images: int, updates: int) -> list[Figure]:
    """Everything that is measured, by name; `images` are those of a batch."""
    times, found = results.times, []
    loops = {(one.model, one.precision): one for one in times if one.way == PLAIN}
    passes = {(one.model, one.precision, one.way.removesuffix(BARE)): one for one in times if one.way.endswith(BARE)}
    for one, taken in times.items():
        found.append(Figure(f'{one}: images/s', [updates * images / t for t in taken], 'images/s'))
        flops, moved = works[one.model].floor(images, PASSES, PRECISIONS[one.precision].itemsize)
        found.append(Figure(f'{one}: share of the roofline', [
            100 * share for share in results.machine.shares(taken, updates * flops, updates * moved, one.precision)],
            '%'))
        peak = results.peaks[one]
        if peak is not None:
            found.append(Figure(f'{one}: most allocated', [peak / 2**20], 'MiB'))
        if one.way == PLAIN or one.way.endswith(BARE):
            continue
        for mode in ('fp32', 'tf32'):
            if (one.model, mode) in loops:
                found.append(Figure(
                    f'{one}: over the plain loop in {mode}', ratios(times[loops[one.model, mode]], taken), 'times'))
        if (one.model, one.precision, one.way) in passes:
            over = ratios(taken, times[passes[one.model, one.precision, one.way]])
            found.append(Figure(f'{one}: overhead over the passes', [100 * (r - 1) for r in over], '%'))
        for other, others in times.items():
            relu = one.model.rsplit('_', 1)[0] + '_relu'
            if one.model != relu and other[:3] == (relu, one.precision, one.way):
                found.append(Figure(f'{one}: over {relu}', ratios(others, taken), 'times'))
    return [*found, *results.machine.figures()]


def kept_figures(names: Sequence[str], x: Tensor) -> list[Figure]:
    """What a forward pass in training keeps for the backward pass, with and with BatchNorm computed anew."""
    found = []
    for name in names:
        for option in ({}, {'fuse_bn_act': True}):
            if option and name.endswith('_relu'):
                continue
            try:
                model = build_model(name, num_classes=10, in_chans=x.shape[1], **option)
            except (ValueError, TypeError, RuntimeError):  # no network of this package, or torch is too old
                continue
            label = f'{name}, BatchNorm computed anew' if option else name
            kept = kept_bytes(model.to(x.device).train(), x) / len(x) / 2**20
            found.append(Figure(f'{label}: kept for the backward pass', [kept], 'MiB'))
    return found


def table(results: Results, measured: Sequence[Figure]) -> list[str]:
    """Markdown: a row for each contestant."""
    by_name = {figure.name: figure for figure in measured}

    def cell(one: Contestant, what: str, form: Callable[[Sequence[float]], str]) -> str:
        figure = by_name.get(f'{one}: {what}')
        return '' if figure is None else form(figure.values)

    lines = [
        '| model | precision | | images/s | ÷ plain loop, fp32 | over the passes, % | ÷ its ReLU twin '
        '| of the roofline, % | most allocated, MiB |', '| --- | --- | --- |' + ' ---: |' * 6]
    for one in results.times:
        relu = one.model.rsplit('_', 1)[0] + '_relu'
        lines.append(' | '.join([
            f'| `{one.model}`', one.precision, one.way, cell(one, 'images/s', spread),
            cell(one, 'over the plain loop in fp32', range_text),
            cell(one, 'overhead over the passes', lambda v: range_text(v, '.1f')),
            cell(one, f'over {relu}', range_text),
            cell(one, 'share of the roofline', lambda v: f'{statistics.median(v):.0f}'),
            cell(one, 'most allocated', lambda v: f'{statistics.median(v):.0f}')]) + ' |')
    return lines


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Own flags, and those of the recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--models', '--model', nargs='+', default=['wrn10_2_pssilu'])
    parser.add_argument('--precisions', nargs='+', default=['fp32'], choices=tuple(PRECISIONS))
    parser.add_argument('--ways', nargs='+', default=['eager'], choices=WAYS)
    parser.add_argument('--backend', default='inductor', help='of torch.compile, for --ways compiled')
    parser.add_argument('--image-size', type=int, metavar='N', help='colour images of this size; digits if not given')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--updates', type=int, default=3, help='updates a round')
    parser.add_argument('--passes', action=argparse.BooleanOptionalAction, default=True, help='time the bare passes')
    parser.add_argument('--check', action=argparse.BooleanOptionalAction, default=True, help='compare before timing')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there as well')
    parser.add_argument('--output', type=Path, metavar='FILE.md', help='write the table there as well')
    args, flags = parser.parse_known_args(argv)
    if 'tf32' in args.precisions and not args.device.startswith('cuda'):
        raise ValueError('--precisions tf32 is of GPUs; leave it out, or give --device cuda.')
    if min(args.rounds, args.updates, args.batch_size) < 1:
        raise ValueError('expected --rounds, --updates and --batch-size of 1 or more.')
    return args, flags


def main(argv: Sequence[str] | None = None) -> int:
    try:
        args, flags = parse(argv)
        device = chosen_device(args.device)
        with tempfile.TemporaryDirectory() as folder:
            data = colour_archives(Path(folder), args.image_size) if args.image_size else []
            found = [one for name in args.models for one in contestants(name, args, data, flags)]
            first = next(endless(job_of(args.models[0], args.batch_size, args.device, data)))
            results = measure(found, device, [*args.precisions, 'fp32'], args.rounds)
            works = {name: work(name, first.x) for name in args.models}
            measured = [
                *figures(results, works, args.batch_size, args.updates), *kept_figures(args.models, first.x[:4])]
    except (ValueError, TypeError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    command = None if argv is None else [__file__, *argv]
    lines = [
        f'PGD-{STEPS}, batches of {args.batch_size}, {args.rounds} rounds of {args.updates} updates; '
        f'{results.machine}.', '', *table(results, measured), '',
        *(f'{figure.name}: {figure.values[0]:.2f} MiB an image' for figure in measured if ': kept' in figure.name), '',
        summary_line(device, command)]
    print('\n'.join(lines))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    if args.json:
        write_figures(args.json, measured, device, command)
    return 0


if __name__ == '__main__':
    sys.exit(main())
