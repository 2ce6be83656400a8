"""Training updates of the engine: images per second, and share of what the device can do.

    python recipes/benchmarks/train_step.py --models wrn10_2_pssilu
    python recipes/benchmarks/train_step.py --models resnet18_relu resnet18_pssilu --precision bf16 --channels-last \
        --ways eager captured --image-size 32 --batch-size 256 --device cuda

PGD-10 updates of the engine, with their batches and optimizer, take turns: eager, with the attack as CUDA graphs
(captured; on a CPU the same as eager), or compiled. The plain loop (`_plain_loop.py`) trains as the code of the paper's
authors does: formulas of the activations in torch's operations, float32, one more forward pass on the clean images.
Before anything is timed, the engine's attack must raise the loss as far as that of the plain loop, and an update on the
same attacked images must change the weights in the same way; --no-check leaves that out. The share of the peak is that
of the fastest product of matrices in bfloat16 in the same run. Images are the embedded digits, half of them synthetic;
with --image-size N only real digits, as colour images.
"""
import argparse
import copy
import dataclasses
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from _networks import update_flops
from _plain_loop import EPS, STEP_SIZE, STEPS, attacked, plain_formulas, plain_update
from _timing import Table, new_parser, peak_flops, ratios, run, take_turns
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from timm_paf.attacks import PGD
from timm_paf.data import Batch, digits_splits
from timm_paf.engine import TrainConfig, Trainer

# largest differences from the plain loop: share of what the attack gains, share of the change of the weights
TOLERANCE = {'fp32': (0.02, 0.01), 'tf32': (0.1, 0.1), 'bf16': (0.1, 0.3)}


def make_trainer(args: argparse.Namespace, folder: str, model: str, way: str) -> Trainer:
    """Trainer of the engine, with an epoch that does not end during the benchmark."""
    config = TrainConfig(
        model=model, model_kwargs=tuple(args.model_kwargs), batch_size=args.batch_size, device=args.device,
        attack_steps=STEPS, eps=str(EPS), attack_step_size=str(STEP_SIZE), updates_per_epoch=10**6, epochs=1,
        amp=args.precision == 'bf16', torchcompile=args.backend if way == 'compiled' else None, crop_padding=1,
        capture='auto' if way == 'captured' else 'none', channels_last=args.channels_last, opt_fused=args.opt_fused,
        output=folder, autoattack='none', synthetic=('generated',), synthetic_fraction=0.5)
    if not args.image_size:
        return Trainer(config, console=Console(quiet=True))
    size, splits = (args.image_size, args.image_size), digits_splits()
    data: dict[str, Any] = {
        name: dataclasses.replace(split, images=(255 * images.expand(-1, 3, -1, -1)).round().to(torch.uint8))
        for name, split in (('train', splits.train), ('val', splits.val), ('test', splits.test))
        for images in [F.interpolate(split.images, size=size, mode='bilinear')]}
    return Trainer(dataclasses.replace(
        config, synthetic=(), synthetic_fraction=0., crop_padding=args.image_size // 8, hflip=True), **data,
        console=Console(quiet=True))


def plain_copy(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Network and optimizer of the plain loop, with the weights and settings of a trainer."""
    model = copy.deepcopy(trainer.model).to(memory_format=torch.contiguous_format)
    plain_formulas(model)
    settings = {name: trainer.optimizer.param_groups[0][name] for name in ('lr', 'momentum', 'weight_decay')}
    return model, torch.optim.SGD(model.parameters(), nesterov=True, **settings)


def check(trainer: Trainer, batch: Batch, args: argparse.Namespace) -> None:
    """Raise ValueError if the trainer's attack or update differs from the plain loop; makes one update."""
    task, attack = trainer.task, cast(PGD, trainer.task.attack)
    batch = Batch(batch.x[:32], batch.y[:32], batch.synthetic[:32], batch.target[:32], min(32, len(batch)))
    plain, optimizer = plain_copy(trainer)
    judge = copy.deepcopy(plain).eval()
    x_adv = attacked(plain.eval(), batch.x, batch.y, random_start=False)
    expected = change_of(plain, lambda: plain_update(plain, optimizer, batch, x_adv))
    attack.random_start = False
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == 'bf16'):
        x_ours = attack(task.trainable_module, as_trained(batch.x, args), batch.y)
    attack.random_start = True
    task.attack = lambda model, x, y: as_trained(x_adv, args)
    change = change_of(trainer.model, lambda: trainer.train_step(batch))
    task.attack = attack
    with torch.no_grad():
        clean, theirs, ours = (float(F.cross_entropy(judge(x), batch.y)) for x in (batch.x, x_adv, x_ours))
    off = abs(ours - theirs) / (theirs - clean), float((change - expected).norm() / expected.norm())
    limits = TOLERANCE['tf32' if args.tf32 and args.precision == 'fp32' else args.precision]
    if not all(value <= most for value, most in zip(off, limits, strict=True)):
        raise ValueError(
            f'{trainer.config.model}, {args.precision}: differs from the plain loop by {off[0]:.2%} of what the attack '
            f'gains and {off[1]:.2%} of the change of the weights; nothing was timed.')


def as_trained(x: Tensor, args: argparse.Namespace) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)


def change_of(model: nn.Module, update: Callable[[], object]) -> Tensor:
    """Change of all weights by an update."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    update()
    return torch.cat([(p.detach() - old).flatten().double() for p, old in zip(model.parameters(), before, strict=True)])


def measure(args: argparse.Namespace) -> Iterator[Table]:
    if min(args.updates, args.batch_size) < 1:
        raise ValueError('expected --updates and --batch-size of 1 or more.')
    contestants: dict[tuple[str, str], Callable[[int], object]] = {}
    flops: dict[str, float] = {}

    def repeated(action: Callable[[], object], number: int) -> None:
        for _ in range(args.updates):
            action()

    with tempfile.TemporaryDirectory() as folder:
        for model, way in itertools.product(args.models, [*(['plain'] if args.plain else []), *args.ways]):
            trainer = make_trainer(args, folder, model, way)
            batches = trainer.batches()
            first = next(batches)
            flops[model] = update_flops(model, first.x, STEPS)
            if way == 'plain':
                update = functools.partial(plain_update, *plain_copy(trainer), first)
            else:
                if args.check:
                    check(trainer, first, args)
                update = functools.partial(lambda trainer, batches: trainer.train_step(next(batches)), trainer, batches)
            contestants[model, way] = functools.partial(repeated, update)
        peak = peak_flops(torch.device(args.device))
        times = take_turns(contestants, args.rounds, until=args.until)
    title = f'PGD-{STEPS}, batches of {args.batch_size}, {args.precision}, rounds of {args.updates} updates:'
    yield (table := Table(title))
    for (model, way), taken in times.items():
        row = f'{model}, {way}'
        speed = [args.updates * args.batch_size / t for t in taken]
        table.add(row, 'speed', speed, 'images/s')
        table.add(row, 'share of the bf16 peak', [100 * flops[model] * value / peak for value in speed], '%')
        if way != 'plain' and args.plain:
            table.add(row, '÷ plain loop', ratios(times[model, 'plain'], taken))
        if model != args.models[0]:
            table.add(row, f'÷ {args.models[0]}', ratios(times[args.models[0], way], taken))
    table.add('largest products', 'rate', [peak / 1e12], 'TFLOP/s')
    yield table


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=7)
    parser.add_argument('--models', '--model', nargs='+', default=['wrn10_2_pssilu'], help='models to train')
    parser.add_argument('--model-kwargs', nargs='+', default=[], metavar='NAME=VALUE', help='arguments of the models')
    parser.add_argument(
        '--precision', default='fp32', choices=('fp32', 'bf16'), help='precision of the engine')
    parser.add_argument(
        '--ways', nargs='+', default=['eager'], choices=('eager', 'captured', 'compiled'), help='ways to run them')
    parser.add_argument('--plain', action=argparse.BooleanOptionalAction, default=True, help='time the plain loop')
    parser.add_argument('--backend', default='inductor', help='backend of torch.compile for --ways compiled')
    parser.add_argument('--channels-last', action='store_true', help='memory format of the engine')
    parser.add_argument('--opt-fused', action=argparse.BooleanOptionalAction, help='setting of the engine')
    parser.add_argument('--image-size', type=int, metavar='N', help='colour images of this size; unset: 8x8 digits')
    parser.add_argument('--batch-size', type=int, default=128, help='images per update')
    parser.add_argument('--updates', type=int, default=3, help='updates per round')
    parser.add_argument('--check', action=argparse.BooleanOptionalAction, default=True, help='compare results first')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
