"""Diffusion models in the folder format of diffusers: loading, sampling, and fitting a small one."""
import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from timm_paf._files import file_sha256
from timm_paf.data import LabelledImages, to_unit_range
from timm_paf.data.order import generator_for, pass_indices
from timm_paf.synthesis.config import SAMPLERS, TIMESTEPS, SyntheticConfig, first_difference

__all__ = ['Diffusion', 'SynthesisFailed', 'fit_diffusion', 'import_diffusers', 'load_diffusion']


class SynthesisFailed(ValueError):
    """No more images can be made with these settings or weights."""


def import_diffusers() -> Any:
    """Return the package diffusers, or raise ValueError if it is not installed."""
    try:
        return importlib.import_module('diffusers')
    except ImportError as error:
        raise ValueError(f'--method diffusion needs diffusers ({error}); pip install "timm-paf[synthetic]"') from None


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
        device: Where to compute.
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
        """Sample images (count, C, H, W) uint8: values are clipped to [-1, 1] and rounded to the nearest of 0 to 255.

        All noise comes from `generator`, on the CPU. An unconditional network ignores the classes `labels` (count,).

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


def load_diffusion(config: SyntheticConfig, source: LabelledImages, *, device: torch.device) -> Diffusion:
    """Load the model in `config.generator_folder`; nothing is downloaded and no code in the folder is run.

    The folder holds `unet/` and `scheduler/` as pipelines of diffusers are saved, or all their files together. The
    model must make images of the shape of `source`, the training set, and know its classes (one more is allowed, for
    "no class") or none. With `config.train`, `fit_diffusion` must have made it with the same settings. Otherwise raises
    ValueError, or FileNotFoundError if a file is missing.
    """
    folder, sampler = config.generator_folder, config.sampler
    trained_here = config.training_record(source) if config.train else None
    if trained_here is not None:
        with _errors_of_reading(f'{folder}/training.json: not the settings of a training'):
            difference = first_difference(trained_here, json.loads((folder / 'training.json').read_text()))
        if difference:
            raise ValueError(f'{folder} was trained with {difference}; give the same settings, or another --output.')
    unet_folder, scheduler_folder = (
        path if (path := folder / name).is_dir() else folder for name in ('unet', 'scheduler'))
    files = [unet_folder / 'config.json', scheduler_folder / 'scheduler_config.json']
    if missing := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f'--generator = {folder}: {missing[0]} does not exist; give the folder of a diffusers '
                                'model on pixels, with unet/ and scheduler/.')
    with _errors_of_reading(f'{unet_folder}: not a readable UNet2DModel'):
        files += (weights := [path for path in unet_folder.iterdir() if path.suffix in ('.safetensors', '.bin')])
        unet, loading = import_diffusers().UNet2DModel.from_pretrained(
            unet_folder, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True,
            # set explicitly, because diffusers prints lines of its own otherwise; it reads .bin with weights_only=True
            use_safetensors=any('.safetensors' in path.name for path in weights))
        keys = [key for kind in ('missing', 'unexpected', 'mismatched') for key in loading.get(f'{kind}_keys') or ()]
        if keys:  # diffusers fills missing weights with random numbers
            raise ValueError(
                f'the weights do not fit the model in config.json: {len(keys)} tensors are missing, unexpected or of '
                f'another shape, first {keys[0]}')
    with _errors_of_reading(f'{files[1]}: not a scheduler of diffusers'):
        name = json.loads(files[1].read_text())['_class_name']
        cls = getattr(import_diffusers(), name)
        if not issubclass(cls, import_diffusers().SchedulerMixin) or not hasattr(cls, 'step'):
            raise TypeError(f'{name} is not a scheduler')
        scheduler = cls.from_pretrained(scheduler_folder, local_files_only=True)
        trained = scheduler.config.num_train_timesteps
    if sampler:
        if name not in SAMPLERS.values():  # another parameterisation would make wrong images without an error
            raise ValueError(f'--sampler = {sampler}: {folder} needs {name}; leave --sampler unset.')
        name = SAMPLERS[sampler]
        scheduler = getattr(import_diffusers(), name).from_config(scheduler.config)
    steps = config.sampling_steps or (trained if name == SAMPLERS['ddpm'] else min(50, trained))
    size, classes, known = unet.config.sample_size, unet.config.num_class_embeds, source.num_classes
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else tuple(size or ())))
    channels = shape[0] * (2 if str(scheduler.config.get('variance_type', '')).startswith('learned') else 1)
    for wrong, message in (
        (shape != source.image_shape, f'makes images of shape {shape}, expected {source.image_shape} (C, H, W)'),
        (classes not in (None, known, known + 1), f'knows {classes} classes, but the data set has {known}'),
        (unet.config.out_channels != channels, f'the network returns {unet.config.out_channels} channels, but {name} '
         f'takes {channels}; leave --sampler unset'),
        (steps > trained, f'--sampling-steps = {steps}, expected at most {trained}, as the model was trained with'),
    ):
        if wrong:
            raise ValueError(f'{folder}: {message}.')
    hashes = ''.join(f'{path.name} {file_sha256(path)}\n' for path in sorted(files, key=lambda path: path.name))
    return Diffusion(
        unet=unet.to(device).eval().requires_grad_(False), scheduler=scheduler, image_shape=source.image_shape,
        conditional=classes is not None, steps=steps, device=device, record={
            'kind': 'diffusion', 'name': folder.resolve().name, 'sha256': hashlib.sha256(hashes.encode()).hexdigest(),
            'conditional': classes is not None, 'sampler': name, 'sampling_steps': steps, 'trained_here': trained_here})


def fit_diffusion(
        config: SyntheticConfig, train: LabelledImages, *, device: torch.device,
        progress: Callable[[int], None] = lambda done: None) -> float:
    """Fit a small diffusion model (DDPM, noise prediction) and save it as `config.generator_folder`.

    For trying out the whole pipeline without a download. Adam with a cosine schedule; the saved weights are an
    exponential moving average. The folder appears when it is complete. `progress` is called with the number of steps
    done; the result is the mean loss (squared error of the noise) of the last tenth of the steps. Raises
    SynthesisFailed if the loss becomes infinite; ValueError unless height and width are multiples of 2 (4 above 8x8).
    """
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(config.seed)
        unet = _small_unet(config, train).to(device)
    scheduler = import_diffusers().DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule='squaredcos_cap_v2')
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.train_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.train_steps)
    ema = ModelEmaV3(unet, decay=0.995, use_warmup=True)
    generator = generator_for('diffusion', config.seed)
    last, tail = max(1, config.train_steps // 10), torch.zeros((), device=device)
    for step in range(config.train_steps):
        first = step * config.train_batch_size
        images, labels = train.take(pass_indices(first, config.train_batch_size, len(train), 'diffusion', config.seed))
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
            raise SynthesisFailed(
                f'the loss of the diffusion model is NaN or infinite at step {step + 1}; lower --train-lr.')
        progress(step + 1)
    _save(config.generator_folder, ema.module, scheduler, config.training_record(train))
    return float(tail)


@contextlib.contextmanager
def _errors_of_reading(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file raises errors of several libraries
        reason = ' '.join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f'{what} ({reason}); get it again.') from error


def _small_unet(config: SyntheticConfig, train: LabelledImages) -> torch.nn.Module:
    channels, *sides = train.image_shape
    levels = 2 if min(sides) <= 8 else 3
    if any(side % 2**(levels - 1) for side in sides):
        raise ValueError(f'{train.name}: images are {sides[0]}x{sides[1]}, expected sides that are multiples of '
                         f'{2**(levels - 1)}.')
    return import_diffusers().UNet2DModel(
        sample_size=sides[0] if sides[0] == sides[1] else tuple(sides), in_channels=channels, out_channels=channels,
        block_out_channels=(config.train_width, *[2 * config.train_width] * (levels - 1)), layers_per_block=1,
        down_block_types=('DownBlock2D',) * levels, up_block_types=('UpBlock2D',) * levels,
        norm_num_groups=config.train_width // 4, attention_head_dim=8,
        # time and class are added after the normalisation, because small groups would normalise them away
        resnet_time_scale_shift='scale_shift', num_class_embeds=train.num_classes if config.conditional else None)


def _save(folder: Path, unet: Any, scheduler: Any, record: dict[str, Any]) -> None:
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', suffix='.tmp', dir=folder.parent) as temporary:
        partial = Path(temporary) / folder.name
        unet.save_pretrained(partial / 'unet')
        scheduler.save_pretrained(partial / 'scheduler')
        (partial / 'training.json').write_text(json.dumps(record, indent=1) + '\n')
        os.replace(partial, folder)
