"""Shows alpha over the first updates of a configuration, and whether it stays in [0.2, 10] and keeps its sign.

    python recipes/benchmarks/alpha_start.py --model wrn10_2_pssilu
    python recipes/benchmarks/alpha_start.py -c recipes/configs/dai2021_cifar10_linf_real.yaml --data-dir ~/data \
        --batch-size 64 --attack-steps 2 --pool 2 --updates 300 --json alpha.json

Flags other than the four below are those of recipes/adv_train.py and override the configuration. Smaller batches at the
same learning rate are the harder case for alpha. Nothing is validated, measured or saved.

Exit status: 0 alpha stayed in the range, 1 it did not, 2 wrong settings or files.
"""
import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault('GOMP_SPINCOUNT', '1000')  # before torch is imported

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from timm_paf.activations import paf_modules, paf_parameters
from timm_paf.engine import RunFailed, Trainer, parse_train_config, run
from timm_paf.engine.step import batches_from

LEAST, MOST = 0.2, 10.


class Softplus(nn.Module):
    """alpha = log(1 + exp(r)) for a learned r: always above 0, as in xIELU (arXiv 2411.13010)."""

    def forward(self, r: Tensor) -> Tensor:
        return F.softplus(r)

    def right_inverse(self, alpha: Tensor) -> Tensor:
        return alpha + torch.log(-torch.expm1(-alpha))


def learn_softplus(trainer: Trainer) -> None:
    """Replace each alpha, in network and optimizer, by the r of `Softplus`."""
    for _, module in paf_modules(trainer.model):
        old = paf_parameters(module, 'alpha').values()
        register_parametrization(module, 'alpha', Softplus())
        (new,) = paf_parameters(module, 'alpha').values()
        for group in trainer.optimizer.param_groups:
            group['params'] = [new if any(p is q for q in old) else p for p in group['params']]


def prepare(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Trainer]:
    """Own flags, and the run of the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--updates', type=int, default=300)
    parser.add_argument('--pool', type=int, default=1, help='average blocks of N x N pixels')
    parser.add_argument('--softplus', action='store_true', help='learn r instead of alpha = log(1 + exp(r))')
    parser.add_argument('--json', type=Path, help='file for settings and all numbers')
    args, flags = parser.parse_known_args(argv)
    config = parse_train_config([*flags, '--output', tempfile.gettempdir()], description=str(__doc__).split('\n')[0])
    trainer = Trainer(config, console=Console(quiet=True))
    if not paf_parameters(trainer.model, 'alpha'):
        raise ValueError(f'--model {config.model}: it has no alpha that learns; choose another model.')
    if args.softplus:
        learn_softplus(trainer)
    return args, trainer


def measure(prepared: tuple[argparse.Namespace, Trainer]) -> None:
    """Train, print each update, and raise RunFailed if alpha left the range."""
    args, trainer = prepared
    shared = [module for _, module in paf_modules(trainer.model) if paf_parameters(module, 'alpha')]
    learned = list(paf_parameters(trainer.model, 'alpha').values())
    gradients: list[float] = []
    for parameter in learned:  # before it is clipped
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(float(p.grad.abs().max())))
    rows = []
    trainer.task.train()
    print('update  alpha (min, max)      |gradient|  loss')
    for update, batch in enumerate(batches_from(trainer.data, 0, args.updates)):
        x = F.avg_pool2d(batch.x, args.pool) if args.pool > 1 else batch.x
        gradients.clear()
        loss, _ = trainer.step(dataclasses.replace(batch, x=x), update)
        alpha = torch.cat([module.alpha.detach().flatten() for module in shared])
        row: dict[str, Any] = dict(
            update=update + 1, least=float(alpha.min()), most=float(alpha.max()), gradient=max(gradients),
            loss=float(loss) / len(batch))
        rows.append(row)
        print('{update:6d}  {least:8.4f} {most:8.4f}  {gradient:14.4g}  {loss:.3f}'.format(**row), flush=True)
        if args.json:
            args.json.write_text(json.dumps({'settings': trainer.config.to_dict(), 'rows': rows}, indent=1))
    least, most = min(row['least'] for row in rows), max(row['most'] for row in rows)
    result = f'alpha from {least:.3f} to {most:.3f} in {len(rows)} updates of {trainer.config.model}'
    if least < LEAST or most > MOST:
        raise RunFailed(f'{result}: it left [{LEAST:g}, {MOST:g}].')
    print(f'{result}: it stayed in [{LEAST:g}, {MOST:g}].')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run(lambda: prepare(argv), measure)


if __name__ == '__main__':
    sys.exit(main())
