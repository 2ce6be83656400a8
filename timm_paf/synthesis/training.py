"""A small diffusion model fitted on a training set, so that the whole way can be gone without a download."""
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from timm_paf.data import ImageSource, IndexPermutation, generator_for, to_unit_range
from timm_paf.synthesis.diffusion import NotFinite, import_diffusers

__all__ = ['TIMESTEPS', 'check_trainable', 'fit_diffusion', 'read_training_record']
TIMESTEPS = 1000  # noise levels of the model


def fit_diffusion(
        train: ImageSource,
        folder: Path,
        *,
        conditional: bool,
        width: int,
        steps: int,
        batch_size: int,
        lr: float,
        seed: int,
        device: torch.device,
        record: Mapping[str, Any],
        progress: Callable[[int], None] = lambda done: None,
) -> float:
    """Fit a small diffusion model (DDPM, noise prediction) and save it as a diffusers folder.

    Adam with a cosine schedule; saved is the running average of the weights. The folder appears when it is complete.

    Args:
        train: Images to learn from; nothing else is looked at. Height and width are multiples of 2, of 4 above 8.
        folder: Where to save; must not be there.
        conditional: Whether it learns to draw a class that is asked for.
        width: Channels of the first level, a multiple of 8; the others have twice as many.
        steps: Updates.
        batch_size: Images an update.
        lr: Highest learning rate.
        seed: Of initial weights, order and noise.
        device: Where to compute.
        record: What decided the model, as plain values; saved with it as training.json.
        progress: Called with the number of updates done.

    Returns:
        Mean loss of the last tenth of the updates, the squared error of the noise.

    Raises:
        NotFinite: If the loss becomes NaN or infinite.
    """
    diffusers = import_diffusers()
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(seed)
        unet = _small_unet(diffusers, train, width, conditional).to(device)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule='squaredcos_cap_v2')
    optimizer = torch.optim.Adam(unet.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = ModelEmaV3(unet, decay=0.995, use_warmup=True)
    generator = generator_for('diffusion', seed)
    tail = torch.zeros((), device=device)
    last = max(1, steps // 10)
    for step in range(steps):
        images, labels = train.take(_training_indices(len(train), step, batch_size, seed))
        x0 = to_unit_range(images).to(device) * 2 - 1
        noise = torch.randn(x0.shape, generator=generator).to(device)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),), generator=generator).to(device)
        condition = {'class_labels': labels.to(device)} if conditional else {}
        predicted = unet(scheduler.add_noise(x0, noise, t), t, **condition).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update(unet, step=step)
        if step >= steps - last:
            tail += loss.detach() / last
        if (step + 1) % 20 == 0 and not loss.isfinite():  # read back now and then: it waits for the device
            raise NotFinite(f'the loss of the generator is NaN or infinite at update {step + 1}; lower --train-lr.')
        progress(step + 1)
    if not tail.isfinite():
        raise NotFinite('the loss of the generator is NaN or infinite at the end; lower --train-lr.')
    _save_folder(folder, {'unet': average.module, 'scheduler': scheduler}, record)
    return float(tail)


def check_trainable(image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError if --train cannot make images of this shape (C, H, W)."""
    step = 2 ** (_levels(image_shape) - 1)
    if any(size % step for size in image_shape[1:]):
        raise ValueError(f'--train: got images of {image_shape}, expected height and width to be multiples of {step}.')


def read_training_record(folder: Path) -> dict[str, Any]:
    """What `fit_diffusion` saved as training.json.

    Raises:
        ValueError: If it is not there or not readable.
    """
    try:
        return dict(json.loads((folder / 'training.json').read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f'{folder}/training.json cannot be read ({error}); give the model as --generator, without --train.'
        ) from None


def _levels(image_shape: tuple[int, int, int]) -> int:
    return 2 if min(image_shape[1:]) <= 8 else 3


def _small_unet(diffusers: Any, train: ImageSource, width: int, conditional: bool) -> torch.nn.Module:
    channels, height, wide = train.image_shape
    levels = _levels(train.image_shape)
    return diffusers.UNet2DModel(
        sample_size=height if height == wide else (height, wide), in_channels=channels, out_channels=channels,
        block_out_channels=(width, *[2 * width] * (levels - 1)), layers_per_block=1,
        down_block_types=('DownBlock2D',) * levels, up_block_types=('UpBlock2D',) * levels,
        norm_num_groups=width // 4, attention_head_dim=8,
        # time and class are added after the normalisation: added before it, small groups would normalise them away
        resnet_time_scale_shift='scale_shift', num_class_embeds=train.num_classes if conditional else None)


def _training_indices(size: int, step: int, batch_size: int, seed: int) -> Tensor:
    """Pass after pass over the images, each in an order of its own."""
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    indices = torch.empty_like(places)
    for epoch in (places // size).unique().tolist():
        inside = places // size == epoch
        indices[inside] = IndexPermutation(size, 'diffusion', seed, epoch)(places[inside] % size)
    return indices


def _save_folder(folder: Path, parts: dict[str, Any], record: Mapping[str, Any]) -> None:
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp')
    try:
        for name, part in parts.items():
            part.save_pretrained(partial / name)
        (partial / 'training.json').write_text(json.dumps(record, indent=1) + '\n')
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
