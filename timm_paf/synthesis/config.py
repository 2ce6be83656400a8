"""Settings for making synthetic images."""
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_paf.data import LabelledImages
from timm_paf.data.synthetic import DEFAULT_COMPONENTS, DEFAULT_MIXTURES
from timm_paf.engine.fields import flag, settings_by_group
from timm_paf.engine.shared_config import DataConfig

__all__ = ['SAMPLERS', 'TIMESTEPS', 'SyntheticConfig', 'first_difference']

SAMPLERS = {'ddpm': 'DDPMScheduler', 'ddim': 'DDIMScheduler'}
TIMESTEPS = 1000  # noise levels of the model that --train fits

_data, _mixture, _diffusion, _train, _labels = settings_by_group(
    'data', '--method mixture', '--method diffusion', '--train', 'labels and filters of --method diffusion')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig(DataConfig):
    """Settings of recipes/make_synthetic.py, one field per flag; those of the images are those of training."""
    train_crop_mode: str | None = _data('resize', 'Image files get the centre crop of evaluation.', choices=('resize',))
    method: str = _data(
        'mixture', 'Gaussian mixture per class (small images) or diffusion model.', choices=('mixture', 'diffusion'))
    num_images: int = _data(10_000, 'Number of images, all classes together.', least=1)
    output: str = _data('', 'Archive NAME.npz (mixture) or folder (diffusion) to write.', unset='required')
    seed: int = _data(0, 'Random seed, any integer.')

    components: int = _mixture(DEFAULT_COMPONENTS, 'Principal components per class of the mixture.')
    mixtures: int = _mixture(DEFAULT_MIXTURES, 'Gaussians per class of the mixture.')
    overwrite: bool = _mixture(False, 'Replace the archive if it exists.')

    generator: str | None = _diffusion(None, 'Folder of a diffusers model on pixels (UNet2DModel).', metavar='FOLDER')
    sampler: str | None = _diffusion(
        None, 'Sampler that replaces that of the model.', choices=(None, *SAMPLERS), unset="the model's own")
    sampling_steps: int | None = _diffusion(
        None, 'Sampling steps of the diffusion model.', least=1, unset='as in training for ddpm, 50 for others')
    batch_size: int = _diffusion(256, 'Images sampled at a time.', least=1)
    part_size: int = _diffusion(50_000, 'Images per part, which is one file.', least=1)
    device: str | None = _diffusion(None, 'Device, such as cpu or cuda.', unset='a GPU if there is one')

    train: bool = _train(False, 'First fit a small diffusion model to the training split, in OUTPUT/generator.')
    train_steps: int = _train(2000, 'Optimiser steps of --train.', least=1)
    train_batch_size: int = _train(128, 'Images per optimiser step of --train.', least=1)
    train_lr: float = _train(2e-3, 'Initial learning rate of --train; it falls to 0 along a cosine.', above=0)
    train_width: int = _train(16, 'Channels of the first level of the model of --train, a multiple of 8.', least=8)
    conditional: bool = _train(True, 'Fit a class-conditional model with --train.')

    labeller_checkpoint: str | None = _labels(
        None, 'Weights of a model that gives or checks the labels.', unset='no such model', metavar='FILE')
    labeller: str | None = _labels(None, "That model's name in timm.", unset='as in the checkpoint', metavar='MODEL')
    min_confidence: float = _labels(0., 'Drop images whose label has a lower probability, 0 to 1.', least=0, most=1)
    balance: bool = _labels(True, 'Make equally many images per class.')
    min_distance: float = _labels(
        0.02, 'Drop images this near to a training image (root mean square of pixel differences, 0 to 1).',
        least=0, most=1)
    max_draws: int = _labels(20, 'Give up when more than this many images are sampled per image kept.', least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output:
            raise ValueError('--output is missing; give the archive to write, such as digits_synth.npz.')
        output, checkpoint, mixture = Path(self.output), self.labeller_checkpoint, self.method == 'mixture'
        for name in ('generator', 'train', 'labeller', 'labeller_checkpoint', 'min_confidence'):
            if mixture and getattr(self, name):
                raise ValueError(f'{flag(name)} belongs to --method diffusion; add that, or remove {flag(name)}.')
        archive = (
            (output.suffix != '.npz' or output.is_dir(), f'--output = {output}: expected a file name ending in .npz.'),
            (output.exists() and not self.overwrite, f'{output} already exists; give another --output or --overwrite.'))
        parts = (
            (output.suffix == '.npz' or output.is_file(),
             f'--output = {output}: --method diffusion writes parts; give the name of a folder.'),
            (self.overwrite, '--overwrite belongs to --method mixture; --method diffusion resumes a folder.'),
            (self.train == bool(self.generator), '--method diffusion needs either --generator FOLDER or --train.'),
            (self.train and (self.sampling_steps or 0) > TIMESTEPS, f'--sampling-steps: expected at most {TIMESTEPS}.'),
            (self.train_width % 8, f'--train-width = {self.train_width}: expected a multiple of 8.'),
            (self.train and not self.conditional and checkpoint is None,
             '--no-conditional needs --labeller-checkpoint, a model that labels the images.'),
            (checkpoint is None and (self.labeller or self.min_confidence > 0),
             '--labeller and --min-confidence need --labeller-checkpoint, its weights.'))
        folder = (not output.parent.is_dir(), f'--output = {output}: the folder {output.parent} does not exist.')
        for wrong, message in (folder, *(archive if mixture else parts)):
            if wrong:
                raise ValueError(message)

    @property
    def generator_folder(self) -> Path:
        """Folder of the diffusion model: --generator, or the one that --train writes."""
        return Path(self.generator) if self.generator else Path(self.output) / 'generator'

    def training_record(self, source: LabelledImages) -> dict[str, Any]:
        """Everything that determines the model of --train, as plain values."""
        names = ('train_steps', 'train_batch_size', 'train_lr', 'train_width', 'conditional', 'seed')
        return {name: getattr(self, name) for name in names} | {'source': source.fingerprint()}


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
