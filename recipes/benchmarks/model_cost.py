"""Table of docs/tables/models.md: size and memory of every architecture, with an activation in place and another one.

    python recipes/benchmarks/model_cost.py

Nothing is computed: the networks are on the meta device, where tensors have a shape and no values. Parameters are
counted without alpha and beta. Multiply-adds are half of what `torch.utils.flop_counter` counts for one image. Memory
is what autograd keeps for the backward pass of one more image, without the weights.
"""
import argparse
import functools
import sys
from collections.abc import Sequence

import timm
import torch
from _timing import Table, kept_bytes, new_parser, run
from torch.utils.flop_counter import FlopCounterMode

import timm_paf

MODULES = ('cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet')


def input_size(name: str) -> tuple[int, ...]:
    return timm.get_pretrained_cfg_value(name, 'input_size') or ()


def cost(name: str) -> tuple[int, int, int]:
    """Parameters, multiply-adds and kept bytes of a network."""
    model = timm.create_model(name, device='meta')
    size = input_size(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *size, device='meta'))
    model.train()
    own = [*model.parameters(), *model.buffers()]
    two, three = (kept_bytes(functools.partial(model, torch.empty(n, *size, device='meta')), own) for n in (2, 3))
    learned = sum(p.numel() for p in timm_paf.paf_parameters(model).values())
    return sum(p.numel() for p in model.parameters()) - learned, counter.get_total_flops() // 2, three - two


def measure(args: argparse.Namespace) -> list[Table]:
    archs = args.arch or [
        name.removesuffix('_relu') for module in MODULES for name in timm.list_models('*_relu', module=module)]
    table = Table('Size of the models, and memory per image')
    for arch in archs:
        print(arch, file=sys.stderr)
        size = '×'.join(map(str, input_size(f'{arch}_relu')))
        for act in ('relu', 'pssilu'):
            parameters, multiply_adds, kept = cost(f'{arch}_{act}')
            table.add(f'`{arch}`, {size}', f'kept with {act}', [kept / 2**20], 'MiB')
        table.add(f'`{arch}`, {size}', 'parameters', [parameters])
        table.add(f'`{arch}`, {size}', 'multiply-adds', [multiply_adds / 1e9], 'G')
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    parser.add_argument('--arch', nargs='+', help='architectures; unset: all')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
