r"""Make labelled synthetic images from the training split of a data set.

    python recipes/make_synthetic.py --dataset digits --num-images 10000 --output digits_synth.npz --seed 0

writes one archive from a Gaussian mixture of each class. It holds `image` (N, H, W, C) uint8 and `label` (N,) int64,
the form that `--synthetic` of adv_train.py reads.

    python recipes/make_synthetic.py --method diffusion --train --num-images 2000 --output FOLDER
    torchrun --nproc-per-node 8 recipes/make_synthetic.py --method diffusion --generator DDPM_FOLDER \
        --labeller-checkpoint model_best.pth.tar --min-confidence 0.9 --num-images 1000000 --output FOLDER

writes parts of that form and manifest.json. Started again with the same settings it goes on where it was stopped.
"""
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from timm_paf.data import LabelledImages, sample_synthetic, save_archive
from timm_paf.data.manifest import Manifest, file_sha256
from timm_paf.engine.cli import RunFailed, parse_config, run
from timm_paf.engine.settings import build_model, choose_device, open_dataset
from timm_paf.models import load_weights, read_checkpoint
from timm_paf.synthesis.config import GENERATOR, SyntheticConfig
from timm_paf.synthesis.diffusion import NotFinite, folder_sha256, import_diffusers, load_diffusion
from timm_paf.synthesis.parts import (
    Labeller,
    PartMaker,
    PartsFailed,
    begin,
    check_folder,
    finish,
    finished_part,
    first_difference,
    write_part,
)
from timm_paf.synthesis.training import check_trainable, fit_diffusion, read_training_record


@dataclasses.dataclass
class Synthesis:
    """A diffusion run whose inputs are checked; the maker is None while --train has yet to fit the generator."""
    config: SyntheticConfig
    train: LabelledImages
    labeller: Labeller | None
    labelled_by: dict[str, Any] | None
    device: torch.device
    rank: int
    world: int
    console: Console
    maker: PartMaker | None = None
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    @property
    def generator_folder(self) -> Path:
        return Path(self.config.generator) if self.config.generator else self.folder / GENERATOR


def prepare(argv: list[str] | None = None) -> Callable[[], None]:
    """Settings to the work to be done. The mixture is sampled here, so that its errors are the user's to mend."""
    config = parse_config(SyntheticConfig, argv, description=(__doc__ or '').splitlines()[0])
    if config.method == 'mixture':
        line = make_mixture(config)
        return lambda: print(line)
    job = prepare_diffusion(config)
    return lambda: make_parts(job)


def training_images(config: SyntheticConfig) -> LabelledImages:
    """The images to learn from.

    Raises:
        ValueError: If they are not arrays in memory.
    """
    train = open_dataset(config.dataset).train
    if not isinstance(train, LabelledImages):
        raise ValueError(f'--dataset = {config.dataset}: synthetic images are made from arrays in memory only.')
    return train


def make_mixture(config: SyntheticConfig) -> str:
    """Sample and write one archive; returns the line to print."""
    started = time.perf_counter()
    train = training_images(config)
    data = sample_synthetic(
        train, config.num_images, seed=config.seed, components=config.components, mixtures=config.mixtures)
    save_archive(config.output, data)
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    seconds = time.perf_counter() - started
    return (
        f'{config.output}: {len(data)} images from {len(train)} of {train.name} in {seconds:.1f} s; '
        f'per class: {counts}')


def prepare_diffusion(config: SyntheticConfig) -> Synthesis:
    """Open everything that a diffusion run needs; nothing is written."""
    import_diffusers()
    rank, world = (int(os.environ.get(name, default)) for name, default in (('RANK', '0'), ('WORLD_SIZE', '1')))
    device = choose_device(config.device)
    if device.type == 'cuda' and device.index is None and world > 1:
        device = choose_device(f'cuda:{os.environ.get("LOCAL_RANK", "0")}')
    train = training_images(config)
    labeller, labelled_by = open_labeller(config, train, device)
    job = Synthesis(config, train, labeller, labelled_by, device, rank, world, Console())
    if config.train and not job.generator_folder.exists():
        check_trainable(train.image_shape)
        if world > 1:
            raise ValueError(f'--train runs in one process, this is one of {world}; run it without torchrun first.')
        check_folder(job.folder, None)
        return job
    return with_generator(job)


def open_labeller(
        config: SyntheticConfig, train: LabelledImages, device: torch.device,
) -> tuple[Labeller | None, dict[str, Any] | None]:
    """The model that labels, and what the manifest says of it."""
    if config.labeller_checkpoint is None:
        return None, None
    name = config.labeller or read_checkpoint(config.labeller_checkpoint).get('arch')
    if not isinstance(name, str):
        raise ValueError(f'checkpoint {config.labeller_checkpoint} does not say its model; give --labeller.')
    model = build_model(name, num_classes=train.num_classes, in_chans=train.image_shape[0])
    weights = load_weights(model, config.labeller_checkpoint)
    record = {'model': name, 'weights': weights, 'sha256': file_sha256(config.labeller_checkpoint)}
    return Labeller(model.to(device).eval(), device), record


def training_record(job: Synthesis) -> dict[str, Any]:
    """What decides the model that --train fits."""
    config = job.config
    names = ('train_steps', 'train_batch_size', 'train_lr', 'train_width', 'conditional', 'seed')
    return {**{name: getattr(config, name) for name in names}, 'source': job.train.fingerprint()}


def with_generator(job: Synthesis) -> Synthesis:
    """The run with its generator read and its plan made, and the folder held against the plan."""
    config, train = job.config, job.train
    trained = read_training_record(job.generator_folder) if config.train else None
    if trained is not None and (difference := first_difference(training_record(job), trained)):
        raise ValueError(f'{job.generator_folder} was trained with {difference}; give the same, or another --output.')
    generator = load_diffusion(
        job.generator_folder, image_shape=train.image_shape, num_classes=train.num_classes, sampler=config.sampler,
        steps=config.sampling_steps, device=job.device)
    if not generator.conditional and job.labeller is None:
        raise ValueError(f'{job.generator_folder} knows no classes; give --labeller-checkpoint, a model to label with.')
    job.maker = PartMaker(
        generator=generator, labeller=job.labeller, source=train, device=job.device,
        **{name: getattr(config, name) for name in (
            'num_images', 'part_size', 'batch_size', 'seed', 'balance', 'min_confidence', 'min_distance', 'max_draws')})
    job.plan = {
        'seed': config.seed, 'num_images': config.num_images, 'num_parts': job.maker.num_parts,
        'part_size': config.part_size, 'batch_size': config.batch_size, 'num_classes': train.num_classes,
        'image_shape': list(train.image_shape),
        'source': {'name': train.name, 'images': len(train), 'sha256': train.fingerprint()},
        'generator': {
            'kind': 'diffusion', 'name': job.generator_folder.resolve().name,
            'sha256': folder_sha256(job.generator_folder), 'conditional': generator.conditional,
            'sampler': type(generator.scheduler).__name__, 'sampling_steps': generator.steps, 'trained_here': trained},
        'labeller': job.labelled_by,
        'filters': {name: getattr(config, name) for name in ('balance', 'min_confidence', 'min_distance')},
    }
    check_folder(job.folder, job.plan)
    return job


def make_parts(job: Synthesis) -> None:
    """Make this process's share of the parts, those that are not there yet, and the manifest."""
    started = time.perf_counter()
    try:
        job.folder.mkdir(exist_ok=True)
        if job.maker is None:
            train_generator(job)
            with_generator(job)
        assert job.maker is not None
        begin(job.folder, job.plan)
        with bar(job, 'images', job.config.num_images) as show:
            done = 0
            for part in range(job.rank, job.maker.num_parts, job.world):
                record = finished_part(job.folder, part)
                if record is None:
                    made = job.maker.make(part, lambda kept, before=done: show(before + kept))  # type: ignore[misc]
                    record = write_part(job.folder, part, made)
                    say(job, f'{record.file}: {record.images} images of {record.drawn} drawn')
                done += record.images
                show(done)
        manifest = finish(job.folder, job.plan)
    except (PartsFailed, NotFinite) as error:
        raise RunFailed(f'{error} Finished parts in {job.folder} are kept.') from error
    except OSError as error:
        raise RunFailed(f'{job.folder} cannot be written ({error}); finished parts are kept.') from error
    say(job, summary(job, manifest, time.perf_counter() - started))


def train_generator(job: Synthesis) -> None:
    """Fit the small model of --train."""
    config = job.config
    say(job, f'fitting a diffusion model on {len(job.train)} images of {job.train.name}, {config.train_steps} updates')
    with bar(job, 'updates', config.train_steps) as show:
        loss = fit_diffusion(
            job.train, job.generator_folder, conditional=config.conditional, width=config.train_width,
            steps=config.train_steps, batch_size=config.train_batch_size, lr=config.train_lr, seed=config.seed,
            device=job.device, record=training_record(job), progress=show)
    say(job, f'{job.generator_folder}: fitted, mean loss of the last updates {loss:.4f}')


def summary(job: Synthesis, manifest: Manifest, seconds: float) -> str:
    """The last line."""
    counts = manifest.counts()
    rejected = ', '.join(f'{count} {reason}' for reason, count in counts['rejected'].items() if count) or 'none'
    state = '' if manifest.complete else f'; {len(manifest.parts)} of {job.plan["num_parts"]} parts so far'
    return (
        f'{job.folder}: {counts["images"]} images of {counts["drawn"]} drawn from {job.plan["generator"]["name"]} in '
        f'{seconds:.1f} s; left out: {rejected}; per class: {counts["per_class"]}{state}')


def say(job: Synthesis, text: str) -> None:
    """A line, which stays one where there is no screen to fit."""
    job.console.print(text, highlight=False, markup=False, soft_wrap=not job.console.is_terminal)


@contextmanager
def bar(job: Synthesis, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, of the first process; takes how much is done."""
    with Progress(
        TextColumn('[bold]{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn('left'), console=job.console, transient=True,
        disable=job.rank > 0 or not job.console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=-(-total // job.world) if what == 'images' else total)
        yield lambda done: progress.update(task, completed=done)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    return run(lambda: prepare(argv), lambda work: work())


if __name__ == '__main__':
    sys.exit(main())
