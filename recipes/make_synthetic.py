"""Make labelled synthetic images from the training split of an embedded data set.

    python recipes/make_synthetic.py --dataset digits --num-images 10000 --output digits_synth.npz --seed 0

The archive holds `image` (N, H, W, C) uint8 and `label` (N,) int64, the form that `--synthetic` of adv_train.py reads.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

from timm_paf.data import digits_splits, sample_synthetic, save_archive
from timm_paf.data.synthetic import DEFAULT_COMPONENTS, DEFAULT_MIXTURES


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line without the usage, as every recipe answers to bad input."""
        self.exit(2, f'{self.prog}: {message}; --help lists what is possible\n')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (`sys.argv` if None)."""
    parser = _Parser(description='Make labelled synthetic images from the training split of a data set.')
    parser.add_argument('--dataset', default='digits', choices=['digits'], help='what to learn from')
    parser.add_argument('--num-images', type=int, default=10_000, metavar='N', help='how many, all classes together')
    parser.add_argument('--output', type=Path, required=True, metavar='FILE.npz', help='archive to write')
    parser.add_argument('--seed', type=int, default=0, help='any integer')
    parser.add_argument(
        '--components', type=int, default=DEFAULT_COMPONENTS, metavar='K', help='principal components a class',
    )
    parser.add_argument('--mixtures', type=int, default=DEFAULT_MIXTURES, metavar='M', help='Gaussians a class')
    parser.add_argument('--overwrite', action='store_true', help='replace the archive if it is there')
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> str:
    """Sample and write; returns the line to print."""
    output: Path = args.output
    if output.suffix != '.npz':
        raise ValueError(f'got --output {output}, expected a name that ends in .npz')
    if not output.parent.is_dir():
        raise ValueError(f'got --output {output}, but there is no folder {output.parent}; make it first')
    if output.is_dir():
        raise ValueError(f'got --output {output}, which is a folder; give the name of a file')
    if output.exists() and not args.overwrite:
        raise ValueError(f'{output} is already there; give another --output, or --overwrite to replace it')
    started = time.perf_counter()
    train = digits_splits().train
    data = sample_synthetic(
        train, args.num_images, seed=args.seed, components=args.components, mixtures=args.mixtures,
    )
    save_archive(output, data)
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    seconds = time.perf_counter() - started
    return f'{output}: {len(data)} images from {len(train)} of {train.name} in {seconds:.1f} s; per class: {counts}'


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    args = parse_args(argv)
    try:
        print(make(args))
    except (ValueError, OSError) as error:
        print(f'make_synthetic.py: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
