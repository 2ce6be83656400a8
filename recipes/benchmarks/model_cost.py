"""Table in docs/tables/models.md: size and memory of every architecture.

    python recipes/benchmarks/model_cost.py --output docs/tables/models.md
"""
import argparse
import functools
import sys
from collections.abc import Iterator

import timm
import torch
from _timing import Table, kept_bytes, new_parser, run
from torch.utils.flop_counter import FlopCounterMode

import timm_paf

MODULES = ('cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet')
TITLE = """\
# Size of the models

Parameters are counted without alpha and beta, of which a network has at most one each. Multiply-adds are those of
convolutions and matrix products for one image. Memory is what autograd keeps for the backward pass of one image in
float32, without the weights: the input and what convolutions, norms and activations save, each piece of memory once.
ReLU and ELU are computed in place; all other activations keep the same. 'All others' is without the fused BatchNorm and
activation: with it, a network with BatchNorm and a PAF keeps no more than with ReLU. The networks are on the meta
device, where nothing is computed."""


def measure(args: argparse.Namespace) -> Iterator[Table]:
    table = Table(TITLE)
    for arch in args.arch or [
            name.removesuffix('_relu') for module in MODULES for name in timm.list_models('*_relu', module=module)]:
        size = timm.get_pretrained_cfg_value(f'{arch}_relu', 'input_size') or ()
        row = f'`{arch}`, {"×".join(map(str, size))}'
        for act, title in (('relu', 'relu, elu'), ('pssilu', 'all others')):
            model = timm.create_model(f'{arch}_{act}', device='meta')
            own = [*model.parameters(), *model.buffers()]
            two, three = (
                kept_bytes(functools.partial(model, torch.empty(n, *size, device='meta')), own) for n in (2, 3))
            table.add(row, f'kept, {title}', [(three - two) / 2**20], 'MiB')
        learned = sum(p.numel() for p in timm_paf.paf_parameters(model).values())
        table.add(row, 'parameters', [sum(p.numel() for p in model.parameters()) - learned])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, *size, device='meta'))
        table.add(row, 'multiply-adds', [counter.get_total_flops() / 2e9], 'G')
    yield table


def main(argv: list[str] | None = None) -> int:
    parser = new_parser(__file__, __doc__, rounds=1)
    parser.add_argument('--arch', nargs='+', help='architectures; unset: all')
    return run(parser, measure, argv)


if __name__ == '__main__':
    sys.exit(main())
