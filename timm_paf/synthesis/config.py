"""Settings for making synthetic images."""
import dataclasses
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from timm_paf.data import LabelledImages
from timm_paf.data.synthetic import DEFAULT_COMPONENTS, DEFAULT_MIXTURES
from timm_paf.engine.cli import setting

__all__ = ['SAMPLERS', 'TIMESTEPS', 'SyntheticConfig', 'first_difference']

SAMPLERS = {'ddpm': 'DDPMScheduler', 'ddim': 'DDIMScheduler'}
TIMESTEPS = 1000  # noise levels of the model that --train fits


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Settings of recipes/make_synthetic.py, one field per flag; they are checked when the object is made."""
    dataset: str = setting('digits', 'data set to learn from', choices=('digits',))
    method: str = setting(
        'mixture', 'mixture: a Gaussian mixture per class; diffusion: a diffusion model',
        choices=('mixture', 'diffusion'))
    num_images: int = setting(10_000, 'number of images to make, all classes together')
    output: str = setting('', 'where to write: an archive NAME.npz (mixture) or a folder (diffusion); required')
    seed: int = setting(0, 'random seed, any integer')
    components: int = setting(DEFAULT_COMPONENTS, 'mixture: number of principal components per class')
    mixtures: int = setting(DEFAULT_MIXTURES, 'mixture: number of Gaussians per class')
    overwrite: bool = setting(False, 'mixture: replace the archive if it exists')

    generator: str | None = setting(None, 'diffusion: folder of a diffusers model on pixels (UNet2DModel)')
    train: bool = setting(False, 'diffusion: first fit a small model to the training split, in OUTPUT/generator')
    train_steps: int = setting(2000, 'optimiser steps of --train')
    train_batch_size: int = setting(128, 'images per optimiser step of --train')
    train_lr: float = setting(2e-3, 'initial learning rate of --train; it falls to 0 along a cosine')
    train_width: int = setting(16, 'channels of the first level of the model of --train, a multiple of 8')
    conditional: bool = setting(True, 'whether the model of --train is class-conditional')
    sampler: str | None = setting(
        None, "ddpm or ddim instead of the model's own sampler", choices=(None, *SAMPLERS))
    sampling_steps: int | None = setting(None, 'sampling steps; unset: all training steps for ddpm, 50 for others')
    batch_size: int = setting(256, 'diffusion: images sampled at a time')
    part_size: int = setting(50_000, 'diffusion: images per part')
    device: str | None = setting(None, 'cpu, cuda, …; unset: a GPU if there is one')

    labeller: str | None = setting(None, "name of the labelling model in timm's registry; unset: as in its checkpoint")
    labeller_checkpoint: str | None = setting(None, 'weights of the model that gives or checks the labels')
    min_confidence: float = setting(0., "drop images whose label's softmax probability is lower than this, 0 to 1")
    balance: bool = setting(True, 'diffusion: make equally many images per class')
    min_distance: float = setting(
        0.02, 'diffusion: drop images nearer than this to a training image; root mean square of the differences of '
        'pixels in [0,1]')
    max_draws: int = setting(20, 'diffusion: give up when more than this many images are sampled per image kept')

    def __post_init__(self) -> None:
        output = Path(self.output)
        if not self.output:
            raise ValueError('--output is missing; give the archive to write, such as digits_synth.npz.')
        if not output.parent.is_dir():
            raise ValueError(f'--output = {output}: the folder {output.parent} does not exist; create it first.')
        if self.method == 'mixture':
            self._check_mixture(output)
        else:
            self._check_diffusion(output)

    def _check_mixture(self, output: Path) -> None:
        for name in ('generator', 'train', 'labeller', 'labeller_checkpoint', 'min_confidence'):
            if getattr(self, name):
                raise ValueError(f'{_flag(name)} belongs to --method diffusion; add that, or remove {_flag(name)}.')
        if output.suffix != '.npz' or output.is_dir():
            raise ValueError(f'--output = {output}: expected a file name that ends in .npz.')
        if output.exists() and not self.overwrite:
            raise ValueError(f'{output} already exists; give another --output, or --overwrite to replace it.')

    def _check_diffusion(self, output: Path) -> None:
        if output.suffix == '.npz' or output.is_file():
            raise ValueError(f'--output = {output}: --method diffusion writes parts; give the name of a folder.')
        if self.overwrite:
            raise ValueError('--overwrite belongs to --method mixture; --method diffusion resumes an existing folder.')
        if self.train == bool(self.generator):
            raise ValueError('--method diffusion needs either --generator FOLDER or --train.')
        at_least_1 = ('num_images', 'train_steps', 'train_batch_size', 'batch_size', 'part_size', 'max_draws')
        ranges = {
            **dict.fromkeys(at_least_1, (1, inf)), 'min_confidence': (0, 1), 'min_distance': (0, 1),
            'train_lr': (1e-12, 1e12), 'sampling_steps': (1, TIMESTEPS if self.train else inf)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN is not in any range
                raise ValueError(f'{_flag(name)} = {value}: expected {low} to {high}.')
        if self.train_width < 8 or self.train_width % 8:
            raise ValueError(f'--train-width = {self.train_width}: expected a multiple of 8.')
        if self.labeller_checkpoint is None:
            if self.train and not self.conditional:
                raise ValueError('--no-conditional needs --labeller-checkpoint, a model that labels the images.')
            if self.labeller or self.min_confidence > 0:
                raise ValueError('--labeller and --min-confidence need --labeller-checkpoint, its weights.')

    @property
    def generator_folder(self) -> Path:
        """Folder of the diffusion model: --generator, or the one that --train writes."""
        return Path(self.generator) if self.generator else Path(self.output) / 'generator'

    def training_record(self, source: LabelledImages) -> dict[str, Any]:
        """Everything that determines the model of --train, as plain values."""
        names = ('train_steps', 'train_batch_size', 'train_lr', 'train_width', 'conditional', 'seed')
        return {**{name: getattr(self, name) for name in names}, 'source': source.fingerprint()}


def first_difference(new: Mapping[str, Any], old: Mapping[str, Any], prefix: str = '') -> str:
    """Return the first setting that differs between two plans, in words; empty if none does."""
    for key in {**new, **old}:
        ours, theirs = new.get(key), old.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if found := first_difference(ours, theirs, f'{prefix}{key}.'):
                return found
        elif ours != theirs:
            return f'{prefix}{key} = {theirs!r}, now it is {ours!r}'
    return ''


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')
