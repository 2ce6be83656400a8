"""The table of docs/tables/models.md: what every registered architecture costs with every activation.

    python recipes/benchmarks/model_cost.py --output docs/tables/models.md

Nothing is computed: the networks are built on the meta device, where tensors have a shape and no values, and run once
forward at the input size of their cfg. Parameters are counted without alpha and beta. Multiply-adds are half of
what `torch.utils.flop_counter` counts, convolutions and matrix products alone, for one image. Memory is what autograd
keeps for the backward pass: the bytes of the distinct storages that `saved_tensors_hooks` sees, without the weights,
for one more image in a batch. It depends on how the activation is computed; here that is the form for every device.
"""
import argparse
import datetime
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import command_line

import timm_paf
from timm_paf.activations import ACTIVATIONS

MODULES = ('cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet')
VARIANTS = ('relu', 'elu', 'silu', 'softplus', *ACTIVATIONS)


class Cost(NamedTuple):
    """What one network costs: parameters without alpha and beta, multiply-adds and bytes kept for each image."""
    parameters: int
    multiply_adds: int
    kept_bytes: int


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that one forward pass in training mode keeps for the backward pass, without parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that none is freed and its number used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    return sum(storage.nbytes() for storage in storages.values())


def cost(name: str) -> Cost:
    """The cost of a registered network."""
    model = timm.create_model(name, device='meta')
    size = model.pretrained_cfg['input_size']
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *size, device='meta'))
    kept = [kept_bytes(model, torch.empty(batch, *size, device='meta')) for batch in (2, 3)]
    learned = sum(p.numel() for p in timm_paf.paf_parameters(model).values())
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()) - learned,
        multiply_adds=counter.get_total_flops() // 2,
        kept_bytes=kept[1] - kept[0])


def table(costs: dict[str, dict[str, Cost]]) -> list[str]:
    """Markdown lines: one row for each architecture, one column of memory for activations that cost the same."""
    columns = defaultdict(list)
    for act in VARIANTS:
        columns[tuple(row[act].kept_bytes for row in costs.values())].append(act)
    groups = sorted(columns.values(), key=len)
    titles = [', '.join(f'`{act}`' for act in acts) for acts in groups]
    if len(groups) > 1:
        titles[-1] = 'all others'
    lines = [
        '| architecture | input | parameters | multiply-adds | '
        + ' | '.join(f'MiB kept, {title}' for title in titles) + ' |',
        '| --- | ---: | ---: | ---: |' + ' ---: |' * len(groups)]
    for arch, row in costs.items():
        same = {(c.parameters, c.multiply_adds) for c in row.values()}
        if len(same) != 1:
            raise RuntimeError(f'{arch}: parameters or multiply-adds differ between activations: {same}.')
        (parameters, multiply_adds), = same
        size = '×'.join(map(str, timm.get_pretrained_cfg_value(f'{arch}_relu', 'input_size')))
        memory = ' | '.join(f'{row[acts[0]].kept_bytes / 2 ** 20:.2f}' for acts in groups)
        lines.append(f'| `{arch}` | {size} | {parameters:,} | {multiply_adds / 1e9:.3f} G | {memory} |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, help='file to write; standard output if not given')
    parser.add_argument('--arch', nargs='+', help='architectures; all of them if not given')
    args = parser.parse_args()
    archs = args.arch or [
        name.removesuffix('_relu') for module in MODULES for name in timm.list_models('*_relu', module=module)]
    costs: dict[str, dict[str, Cost]] = {}
    for arch in archs:
        print(arch, file=sys.stderr)
        costs[arch] = {act: cost(f'{arch}_{act}') for act in VARIANTS}
    text = '\n'.join([
        '# What the models cost', '',
        'Parameters without alpha and beta, of which a network has at most one each. Multiply-adds of convolutions and',
        'matrix products for one image. MiB that autograd keeps for the backward pass of one image in float32, beside',
        'the weights: the input and what convolutions, norms and activations save, each piece of memory once.',
        'Activations with the same figures in every row share a column; ReLU and ELU are computed in place.', '',
        *table(costs), '',
        f'`{command_line()}`, {datetime.date.today()}, Python {platform.python_version()}, '
        f'torch {torch.__version__.split("+")[0]}, timm {timm.__version__}; on the meta device.', ''])
    if args.output is None:
        print(text, end='')
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
