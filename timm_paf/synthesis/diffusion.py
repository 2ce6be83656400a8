"""Images from a diffusion model in the folder format of diffusers."""
import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timm_paf._files import file_sha256
from timm_paf.data import ImageSource
from timm_paf.synthesis.config import SAMPLERS

__all__ = ['Diffusion', 'SynthesisFailed', 'import_diffusers', 'load_diffusion']


class SynthesisFailed(ValueError):
    """No more images can be made with these settings or weights."""


def import_diffusers() -> Any:
    """Return the package diffusers.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module('diffusers')
    except ImportError as error:
        raise ValueError(
            f'--method diffusion needs the package diffusers ({error}); install it: pip install "timm-paf[synthetic]"'
        ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Samples images from a network on pixels in [-1, 1] with a scheduler of diffusers (DDPM, DDIM, EDM, …).

    The loop is that of diffusers' DDPMPipeline and DDIMPipeline, which take no class labels.

    Args:
        unet: Called as unet(x, t) or unet(x, t, class_labels=labels); its result has `sample`, as of UNet2DModel.
        scheduler: Scheduler of diffusers.
        image_shape: (C, H, W).
        conditional: Whether the network takes class labels.
        steps: Sampling steps, 1 or more.
        device: Where to compute. Noise is always drawn on the CPU.
        record: Description for the manifest.
    """
    unet: Callable[..., Any]
    scheduler: Any
    image_shape: tuple[int, int, int]
    conditional: bool
    steps: int
    device: torch.device
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    @torch.inference_mode()
    def draw(self, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Sample images.

        Args:
            count: Number of images.
            labels: Their classes (count,) int64; not used by an unconditional network.
            generator: Generator on the CPU; all noise comes from it.

        Returns:
            (count, C, H, W) uint8 on the CPU: values are clipped to [-1, 1] and rounded to the nearest of 0 to 255.

        Raises:
            SynthesisFailed: If a pixel is NaN or infinite.
        """
        self.scheduler.set_timesteps(self.steps)  # for each call: a scheduler counts its steps
        x = torch.randn((count, *self.image_shape), generator=generator).to(self.device)
        x = x * self.scheduler.init_noise_sigma
        condition = {'class_labels': labels.to(self.device)} if self.conditional and labels is not None else {}
        # stochastic samplers take a generator; without it they draw from the global one
        noise = {'generator': generator} if 'generator' in inspect.signature(self.scheduler.step).parameters else {}
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t.to(self.device), **condition).sample
            x = self.scheduler.step(output, t, x, **noise).prev_sample
        if not x.isfinite().all():
            raise SynthesisFailed('The generator gives NaN or infinite pixels; check its weights.')
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def load_diffusion(
        folder: Path, source: ImageSource, *, sampler: str | None = None, steps: int | None = None,
        device: torch.device, trained_here: dict[str, Any] | None = None) -> Diffusion:
    """Load a model from a local folder; nothing is downloaded and no code in the folder is run.

    Args:
        folder: Holds `unet/` and `scheduler/` as pipelines of diffusers are saved, or all their files together.
        source: Training set. The model must make images of its shape, and know its classes (one more is allowed, for
            "no class") or none.
        sampler: A key of `SAMPLERS` that replaces the folder's scheduler; None for the folder's.
        steps: Sampling steps; None for all training steps with ddpm, 50 with others.
        device: Where to compute.
        trained_here: Settings of the training, for the record; None if `fit_diffusion` did not make the model.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is not such a model, or made for other images or classes.
    """
    unet_folder, scheduler_folder = (
        path if (path := folder / name).is_dir() else folder for name in ('unet', 'scheduler'))
    files = [unet_folder / 'config.json', scheduler_folder / 'scheduler_config.json']
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f'--generator = {folder}: {path} does not exist; give the folder of a diffusers '
                                    'model on pixels, with unet/ and scheduler/.')
    unet, scheduler = _read_unet(unet_folder), _read_scheduler(scheduler_folder, sampler)
    name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
    steps = steps or (trained if name == SAMPLERS['ddpm'] else min(50, trained))
    size, classes = unet.config.sample_size, unet.config.num_class_embeds
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else tuple(size or ())))
    channels = shape[0] * (2 if str(scheduler.config.get('variance_type', '')).startswith('learned') else 1)
    if shape != source.image_shape:
        raise ValueError(f'{folder}: makes images of shape {shape}, expected {source.image_shape} (C, H, W).')
    if classes not in (None, source.num_classes, source.num_classes + 1):
        raise ValueError(f'{folder}: knows {classes} classes, but the data set has {source.num_classes}.')
    if classes is None and unet.config.class_embed_type is not None:
        raise ValueError(f'{folder}: class_embed_type = {unet.config.class_embed_type!r}, expected num_class_embeds.')
    if unet.config.out_channels != channels:
        raise ValueError(f'{folder}: the network returns {unet.config.out_channels} channels, but {name} takes '
                         f'{channels}; leave --sampler unset.')
    if steps > trained:
        raise ValueError(f'--sampling-steps = {steps}: expected at most {trained}, as the model was trained with.')
    files += [path for path in unet_folder.iterdir() if path.suffix in ('.safetensors', '.bin')]
    hashes = ''.join(f'{path.name} {file_sha256(path)}\n' for path in sorted(files, key=lambda path: path.name))
    conditional = classes is not None
    return Diffusion(
        unet=unet.to(device).eval().requires_grad_(False), scheduler=scheduler, image_shape=source.image_shape,
        conditional=conditional, steps=steps, device=device, record={
            'kind': 'diffusion', 'name': folder.resolve().name, 'sha256': hashlib.sha256(hashes.encode()).hexdigest(),
            'conditional': conditional, 'sampler': name, 'sampling_steps': steps, 'trained_here': trained_here})


def _read_unet(folder: Path) -> Any:
    # set explicitly, because diffusers prints lines of its own otherwise; it reads .bin with weights_only=True
    safe = any('.safetensors' in path.name for path in folder.iterdir())
    try:
        unet, loading = import_diffusers().UNet2DModel.from_pretrained(
            folder, local_files_only=True, low_cpu_mem_usage=False, use_safetensors=safe, output_loading_info=True)
        wrong = [key for kind in ('missing', 'unexpected', 'mismatched') for key in loading.get(f'{kind}_keys') or ()]
        if wrong:  # diffusers fills missing weights with random numbers
            raise ValueError(f'weights do not fit config.json: {wrong[0]} and {len(wrong) - 1} more')
    except Exception as error:  # a damaged file raises errors of several libraries
        raise ValueError(f'{folder}: not a readable UNet2DModel ({_reason(error)}); get it again.') from error
    return unet


def _read_scheduler(folder: Path, sampler: str | None) -> Any:
    diffusers, path = import_diffusers(), folder / 'scheduler_config.json'
    try:
        name = json.loads(path.read_text())['_class_name']
        cls = getattr(diffusers, name)
        if not issubclass(cls, diffusers.SchedulerMixin) or not hasattr(cls, 'step'):
            raise TypeError(f'{name} is not a scheduler')
        scheduler = cls.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f'{path}: not a scheduler of diffusers ({_reason(error)}); get it again.') from error
    if sampler is None:
        return scheduler
    if name not in SAMPLERS.values():  # a model with another parameterisation would make wrong images without an error
        raise ValueError(f'--sampler = {sampler}: {folder} needs {name}; leave --sampler unset.')
    return getattr(diffusers, SAMPLERS[sampler]).from_config(scheduler.config)


def _reason(error: Exception) -> str:
    return ' '.join(str(error).split())[:160] or type(error).__name__
