"""A small diffusion model fitted to a training set, for trying out the whole pipeline without a download."""
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from timm_paf.data import ImageSource, IndexPermutation, LabelledImages, generator_for, to_unit_range
from timm_paf.synthesis.config import TIMESTEPS, SyntheticConfig, first_difference
from timm_paf.synthesis.diffusion import SynthesisFailed, import_diffusers

__all__ = ['fit_diffusion', 'read_training_record']


def fit_diffusion(
        config: SyntheticConfig, train: LabelledImages, *, device: torch.device,
        progress: Callable[[int], None] = lambda done: None) -> float:
    """Fit a small diffusion model (DDPM, noise prediction) and save it as `config.generator_folder`.

    Adam with a cosine schedule; the saved weights are an exponential moving average. The folder appears when it is
    complete, with `config.training_record(train)` in training.json.

    Args:
        config: The settings `train_*`, `conditional` and `seed`.
        train: Training images.
        device: Where to compute.
        progress: Called with the number of steps done.

    Returns:
        Mean loss (squared error of the noise) of the last tenth of the steps.

    Raises:
        SynthesisFailed: If the loss becomes NaN or infinite.
        ValueError: If height or width is not a multiple of 2 (4 for images larger than 8x8).
    """
    diffusers = import_diffusers()
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(config.seed)
        unet = _small_unet(diffusers, train, config.train_width, config.conditional).to(device)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule='squaredcos_cap_v2')
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.train_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.train_steps)
    ema = ModelEmaV3(unet, decay=0.995, use_warmup=True)
    generator = generator_for('diffusion', config.seed)
    last = max(1, config.train_steps // 10)
    tail = torch.zeros((), device=device)
    for step, indices in zip(
            range(config.train_steps), _shuffled(len(train), config.train_batch_size, config.seed), strict=False):
        images, labels = train.take(indices)
        x0 = to_unit_range(images).to(device) * 2 - 1
        noise = torch.randn(x0.shape, generator=generator).to(device)
        t = torch.randint(0, TIMESTEPS, (len(x0),), generator=generator).to(device)
        condition = {'class_labels': labels.to(device)} if config.conditional else {}
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(x0, noise, t), t, **condition).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        ema.update(unet, step=step)
        if step >= config.train_steps - last:
            tail += loss.detach() / last
        # not at each step, because reading the loss waits for the device
        if ((step + 1) % 20 == 0 or step + 1 == config.train_steps) and not (loss + tail).isfinite():
            raise SynthesisFailed(f'The loss of the generator is NaN or infinite at step {step + 1}; lower --train-lr.')
        progress(step + 1)
    _save(config.generator_folder, unet=ema.module, scheduler=scheduler, record=config.training_record(train))
    return float(tail)


def read_training_record(config: SyntheticConfig, train: LabelledImages) -> dict[str, Any]:
    """Read the settings with which `fit_diffusion` made `config.generator_folder`.

    Raises:
        ValueError: If they are missing, not readable, or not those of `config` and `train`.
    """
    folder = config.generator_folder
    try:
        record = json.loads((folder / 'training.json').read_text())
        difference = first_difference(config.training_record(train), record)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f'{folder}/training.json cannot be read ({error}); use --generator {folder} without --train.') from None
    if difference:
        raise ValueError(f'{folder} was trained with {difference}; give the same settings, or another --output.')
    return record


def _small_unet(diffusers: Any, train: ImageSource, width: int, conditional: bool) -> torch.nn.Module:
    channels, height, wide = train.image_shape
    levels = 2 if min(height, wide) <= 8 else 3
    multiple = 2 ** (levels - 1)
    if height % multiple or wide % multiple:
        raise ValueError(f'{train.name}: images are {height}x{wide}, expected sides that are multiples of {multiple}.')
    return diffusers.UNet2DModel(
        sample_size=height if height == wide else (height, wide), in_channels=channels, out_channels=channels,
        block_out_channels=(width, *[2 * width] * (levels - 1)), layers_per_block=1,
        down_block_types=('DownBlock2D',) * levels, up_block_types=('UpBlock2D',) * levels,
        norm_num_groups=width // 4, attention_head_dim=8,
        # time and class are added after the normalisation, because small groups would normalise them away
        resnet_time_scale_shift='scale_shift', num_class_embeds=train.num_classes if conditional else None)


def _shuffled(size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices; each pass over the images has an order of its own."""
    indices = torch.empty(0, dtype=torch.int64)
    for epoch in count():
        indices = torch.cat([indices, IndexPermutation(size, 'diffusion', seed, epoch)(torch.arange(size))])
        while len(indices) >= batch_size:
            yield indices[:batch_size]
            indices = indices[batch_size:]


def _save(folder: Path, *, unet: Any, scheduler: Any, record: dict[str, Any]) -> None:
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    try:
        unet.save_pretrained(partial / 'unet')
        scheduler.save_pretrained(partial / 'scheduler')
        (partial / 'training.json').write_text(json.dumps(record, indent=1) + '\n')
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
