"""Images from a diffusion model that lies in a diffusers folder."""
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_paf.data.manifest import file_sha256

__all__ = ['SAMPLERS', 'Diffusion', 'NotFinite', 'folder_sha256', 'import_diffusers', 'load_diffusion']

_WEIGHTS = ('.safetensors', '.bin')
SAMPLERS = {'ddpm': 'DDPMScheduler', 'ddim': 'DDIMScheduler'}


class NotFinite(Exception):
    """The generator gave NaN or infinite pixels."""


def import_diffusers() -> Any:
    """The package diffusers.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module('diffusers')
    except ImportError as error:
        raise ValueError(
            f'--method diffusion needs the package diffusers ({error}); install it: pip install "timm-paf[synthetic]"'
        ) from None


class Diffusion:
    """Draws images with a network that works on pixels in [-1, 1], whatever its schedule (DDPM, DDIM, EDM, …).

    Args:
        unet: Called as unet(x, t) or unet(x, t, class_labels=labels), with `sample` in its result as UNet2DModel has.
        scheduler: One of diffusers' schedulers.
        image_shape: (C, H, W).
        conditional: Whether the network takes class labels.
        steps: Sampling steps, 1 or more.
        device: Where to compute. Noise is always drawn on the CPU.
    """

    def __init__(
            self,
            unet: Callable[..., Any],
            scheduler: Any,
            *,
            image_shape: tuple[int, int, int],
            conditional: bool,
            steps: int,
            device: torch.device,
    ) -> None:
        self.unet, self.scheduler, self.image_shape = unet, scheduler, image_shape
        self.conditional, self.steps, self.device = conditional, steps, device
        # stochastic samplers take a generator; without it they would draw from the global one
        self.seeded = 'generator' in inspect.signature(scheduler.step).parameters

    @torch.inference_mode()
    def draw(self, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw `count` images, of classes `labels` (count,) int64 if the network is conditional.

        Args:
            count: How many.
            labels: Class numbers; None for an unconditional network.
            generator: On the CPU; all noise comes from it.

        Returns:
            (count, C, H, W) uint8 on the CPU: values are clipped to [-1, 1] and rounded to the nearest of 0 to 255.

        Raises:
            NotFinite: If a pixel is NaN or infinite.
        """
        # the scheduler counts its steps: set anew, also after a draw that was broken off
        self.scheduler.set_timesteps(self.steps)
        x = torch.randn((count, *self.image_shape), generator=generator).to(self.device)
        x = x * self.scheduler.init_noise_sigma
        condition = {'class_labels': labels.to(self.device)} if self.conditional and labels is not None else {}
        noise = {'generator': generator} if self.seeded else {}
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t.to(self.device), **condition).sample
            x = self.scheduler.step(output, t, x, **noise).prev_sample
        if not x.isfinite().all():
            raise NotFinite('the generator gave NaN or infinite pixels')
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def load_diffusion(
        folder: Path,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        sampler: str | None,
        steps: int | None,
        device: torch.device,
) -> Diffusion:
    """Read a local diffusers folder; nothing is fetched and no code of the folder is run.

    Args:
        folder: Either `unet/` and `scheduler/` as pipelines are saved, or both configurations beside the weights.
        image_shape: (C, H, W) that the network must make.
        num_classes: Class count of the data set; a conditional network knows these, or one more (a class for "none").
        sampler: A key of SAMPLERS to use instead of the folder's scheduler; None for the folder's.
        steps: Sampling steps; None for 50 with ddim and edm, all training steps with ddpm.
        device: Where to compute.

    Raises:
        FileNotFoundError: If the folder or a file in it is missing.
        ValueError: If it is not such a model, or made for other images or classes.
    """
    diffusers = import_diffusers()
    unet_folder, scheduler_folder = _parts_of(folder)
    # said outright: left to find out, diffusers writes lines of its own; a .bin file is read with weights_only=True
    safe = any('.safetensors' in path.name for path in unet_folder.iterdir())
    try:
        unet, loading = diffusers.UNet2DModel.from_pretrained(
            unet_folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=safe, output_loading_info=True)
    except Exception as error:  # a damaged file fails in whatever library reads it
        raise ValueError(f'{unet_folder}: not a readable UNet2DModel ({_reason(error)}); get it again') from error
    wrong = [key for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys') for key in loading.get(kind) or ()]
    if wrong:  # diffusers would fill what is missing with random numbers
        raise ValueError(
            f'{unet_folder}: weights and config.json do not belong together ({wrong[0]} and {len(wrong) - 1} more '
            'missing, unknown or of another shape); get it again')
    size = unet.config.sample_size
    made = (unet.config.in_channels, *((size, size) if isinstance(size, int) else tuple(size or ())))
    if made != image_shape:
        raise ValueError(f'{unet_folder}: makes images of {made}, expected {image_shape} (channels, height, width)')
    classes = unet.config.num_class_embeds
    if classes is None and unet.config.class_embed_type is not None:
        raise ValueError(
            f'{unet_folder}: class_embed_type = {unet.config.class_embed_type!r}, expected num_class_embeds or none')
    if classes not in (None, num_classes, num_classes + 1):
        raise ValueError(f'{unet_folder}: knows {classes} classes, but the data set has {num_classes}')
    scheduler = _scheduler(diffusers, scheduler_folder, sampler)
    learned = str(scheduler.config.get('variance_type', '')).startswith('learned')
    channels = image_shape[0] * (2 if learned else 1)
    if unet.config.out_channels != channels:
        raise ValueError(
            f'{unet_folder}: gives {unet.config.out_channels} channels, but {type(scheduler).__name__} takes '
            f'{channels} for images with {image_shape[0]}; leave --sampler unset, or get the folder again')
    trained_steps = scheduler.config.num_train_timesteps
    steps = steps or (trained_steps if type(scheduler).__name__ == SAMPLERS['ddpm'] else min(50, trained_steps))
    if steps > trained_steps:
        raise ValueError(f'--sampling-steps = {steps}: the model was trained with {trained_steps}; give no more.')
    return Diffusion(
        unet.to(device).eval().requires_grad_(False), scheduler, image_shape=image_shape,
        conditional=classes is not None, steps=steps, device=device)


def _parts_of(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f'--generator = {folder}: there is no such folder; give a diffusers model on disk.')
    if foreign := [name for name in ('vae', 'text_encoder', 'transformer') if (folder / name).exists()]:
        raise ValueError(f'{folder}: holds {", ".join(foreign)}; expected a UNet2DModel on pixels and a scheduler')
    unet = folder / 'unet' if (folder / 'unet').is_dir() else folder
    scheduler = folder / 'scheduler' if (folder / 'scheduler').is_dir() else folder
    for path in (unet / 'config.json', scheduler / 'scheduler_config.json'):
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such file; a model has unet/ and scheduler/ with their configurations')
    return unet, scheduler


def _scheduler(diffusers: Any, folder: Path, sampler: str | None) -> Any:
    path = folder / 'scheduler_config.json'
    try:
        name = json.loads(path.read_text())['_class_name']
        cls = getattr(diffusers, name)
        if not issubclass(cls, diffusers.SchedulerMixin) or not hasattr(cls, 'step'):
            raise TypeError(f'{name} is no scheduler')
        scheduler = cls.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f'{path}: not a scheduler of diffusers ({_reason(error)}); get the folder again') from error
    if sampler is None:
        return scheduler
    if name not in SAMPLERS.values():
        # another parameterisation of the noise: the network's outputs would be misread, without an error
        raise ValueError(f'--sampler = {sampler}: {folder} was made for {name}; leave --sampler unset.')
    return getattr(diffusers, SAMPLERS[sampler]).from_config(scheduler.config)


def folder_sha256(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the configurations and weights in a model's folder."""
    unet, scheduler = _parts_of(folder)
    files = {path.name: path for path in unet.iterdir() if path.name == 'config.json' or path.suffix in _WEIGHTS}
    files['scheduler_config.json'] = scheduler / 'scheduler_config.json'
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f'{name} {file_sha256(files[name])}\n'.encode())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:160] or type(error).__name__
