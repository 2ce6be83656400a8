"""Make labelled synthetic images from the training split of an embedded data set.

    python recipes/make_synthetic.py --dataset digits --num-images 10000 --output digits_synth.npz --seed 0

The archive holds `image` (N, H, W, C) uint8 and `label` (N,) int64, the form that `--synthetic` of adv_train.py reads.
"""
import dataclasses
import sys
import time
from pathlib import Path
from typing import Optional

import torch
from _cli import parse_config, run, setting
from _settings import DATASETS, open_dataset

from timm_paf.data import sample_synthetic, save_archive
from timm_paf.data.synthetic import DEFAULT_COMPONENTS, DEFAULT_MIXTURES


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to make and from what."""
    dataset: str = setting('digits', 'data set to learn from', choices=DATASETS)
    num_images: int = setting(10_000, 'how many images, all classes together')
    output: str = setting('', 'archive to write, NAME.npz (required)')
    seed: int = setting(0, 'any integer')
    components: int = setting(DEFAULT_COMPONENTS, 'principal components a class')
    mixtures: int = setting(DEFAULT_MIXTURES, 'Gaussians a class')
    overwrite: bool = setting(False, 'replace the archive if it is there')

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError('--output is missing; give the archive to write, such as digits_synth.npz.')
        path = Path(self.output)
        if path.suffix != '.npz':
            raise ValueError(f'--output = {path}: expected a name that ends in .npz.')
        if not path.parent.is_dir():
            raise ValueError(f'--output = {path}: there is no folder {path.parent}; make it first.')
        if path.is_dir():
            raise ValueError(f'--output = {path}: that is a folder; give the name of a file.')
        if path.exists() and not self.overwrite:
            raise ValueError(f'{path} is already there; give another --output, or --overwrite to replace it.')


def make(argv: Optional[list[str]] = None) -> str:
    """Sample and write; returns the line to print."""
    config = parse_config(SyntheticConfig, argv, description=(__doc__ or '').splitlines()[0])
    started = time.perf_counter()
    train = open_dataset(config.dataset).train
    data = sample_synthetic(
        train, config.num_images, seed=config.seed, components=config.components, mixtures=config.mixtures)
    save_archive(config.output, data)
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    seconds = time.perf_counter() - started
    return (
        f'{config.output}: {len(data)} images from {len(train)} of {train.name} in {seconds:.1f} s; '
        f'per class: {counts}')


def main(argv: Optional[list[str]] = None) -> int:
    """Run the command; the return value is the exit status."""
    return run(lambda: make(argv), print)


if __name__ == '__main__':
    sys.exit(main())
