"""What an update of adv_train.py costs, beside its bare passes and beside a plain loop.

    python recipes/benchmarks/train_step.py --model wrn10_2_pssilu
    python recipes/benchmarks/train_step.py --model resnet18_pssilu --device cuda --channels-last

Flags that are not its own go to the recipe, and hold for the bare passes as well where these are of the model.
Three things are timed in turn, on batches of digits (half synthetic) with PGD-10, and compared in each round: an
update of the recipe, data and optimizer included; the passes through the network that PGD-10 needs, 12 forward and 11
backward, and nothing else; and a loop written as the paper's authors train: activations by their formulas in eager
operations, and one more forward pass in training mode on the clean images to log their accuracy.
"""
import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import adv_train
from _benchmarking import seconds as seconds_of
from _update import batches_from

from timm_paf.activations import ParametricActivation
from timm_paf.data import Batch
from timm_paf.evaluation import library_versions

STEPS, EPS, STEP_SIZE = 10, 0.2, 0.05
FORMULAS: dict[str, Callable[..., Tensor]] = {
    'pssilu': lambda x, a, b: x * (torch.sigmoid(a.abs() * x) - b.abs()) / (1 - b.abs()),
    'psoftplus': lambda x, a: functional.softplus(a.abs() * x) / a.abs(),
    'psilu': lambda x, a: x * torch.sigmoid(a.abs() * x),
}


def job_of(model: str, batch_size: int, device: str, flags: Sequence[str] = ()) -> adv_train.Run:
    """A run of the recipe with the settings of the digits, and further flags."""
    job = adv_train.prepare([
        '--model', model, '--batch-size', str(batch_size), '--device', device, '--attack-steps', str(STEPS), '--eps',
        str(EPS), '--attack-step-size', str(STEP_SIZE), *flags])
    assert job is not None
    job.task.train()
    return job


def plain_formulas(model: nn.Module, name: str) -> None:
    """Let every parametric activation of a model compute its formula in eager operations."""
    formula = FORMULAS[name]
    for module in model.modules():
        if isinstance(module, ParametricActivation):
            parameters = [getattr(module, kind) for kind in ('alpha', 'beta') if hasattr(module, kind)]
            module.forward = lambda x, parameters=parameters: formula(x, *parameters)


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


def plain_update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """An update as in the authors' trainer."""
    x, y = batch.x, batch.y
    model.eval()
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    output = model(x_adv.detach())
    loss = functional.cross_entropy(output, y)
    betas = [parameter for name, parameter in model.named_parameters() if name.endswith('.beta')]
    for beta in betas:
        loss = loss + 10 * beta.abs().sum()
    loss.backward()
    for beta in betas:
        nn.utils.clip_grad_norm_([beta], 0.01)
    optimizer.step()
    loss.item()
    (output.argmax(1) == y).float().mean().item()
    (model(x).argmax(1) == y).float().mean().item()


def measure(model: str, batch_size: int, device: str, rounds: int, updates: int, flags: Sequence[str]) -> None:
    """Print the ratios."""
    engine, bare = (job_of(model, batch_size, device, flags) for _ in range(2))
    plain = job_of(model, batch_size, device)
    plain_formulas(plain.task.trainable_module, model.rsplit('_', 1)[-1])
    target = engine.processes.device
    stream = endless(engine)
    kept = list(batches_from(engine.batches, 0, updates))
    layout = torch.channels_last if engine.config.channels_last else torch.contiguous_format
    kept_bare = [dataclasses.replace(batch, x=batch.x.contiguous(memory_format=layout)) for batch in kept]
    numbers = iter(range(10**9))

    def recipe() -> None:
        for _ in range(updates):
            engine.updates(next(stream), next(numbers))

    def passes() -> None:
        for batch in kept_bare:
            bare_passes(bare.task.trainable_module, batch)

    def loop() -> None:
        for batch in kept:
            plain_update(plain.task.trainable_module, plain.optimizer, batch)

    for action in (recipe, passes, loop):
        action()
    seconds = [[seconds_of(action, target) for action in (recipe, passes, loop)] for _ in range(rounds)]
    images = updates * batch_size
    print(f'{" ".join([model, *flags])}, batches of {batch_size}, PGD-{STEPS}, {rounds} rounds of {updates} updates on '
          f'{target}, {torch.get_num_threads()} threads')
    for name, column in (('recipe', 0), ('12 forward, 11 backward', 1), ('plain loop', 2)):
        print(f'  {name:24} {images / statistics.median(row[column] for row in seconds):9.1f} images/s')
    over = [row[0] / row[1] - 1 for row in seconds]
    faster = [row[2] / row[0] for row in seconds]
    print(f'  overhead over the passes {statistics.median(over):.1%} ({min(over):.1%} … {max(over):.1%})')
    print(f'  beside the plain loop    {statistics.median(faster):.2f}x ({min(faster):.2f} … {max(faster):.2f})')


def endless(job: adv_train.Run) -> Iterator[Batch]:
    """The recipe's batches; making them is part of what is timed."""
    update = 0
    while True:
        for batch in batches_from(job.batches, update, len(job.batches)):
            update += 1
            yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--model', default='wrn10_2_pssilu', help='with pssilu, psoftplus or psilu')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--updates', type=int, default=3, help='updates a round')
    args, flags = parser.parse_known_args()
    measure(args.model, args.batch_size, args.device, args.rounds, args.updates, flags)
    print(', '.join(f'{name} {version}' for name, version in library_versions().items()))


if __name__ == '__main__':
    main()
