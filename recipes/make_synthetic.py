r"""Make labelled synthetic images from the training split of a data set.

    python recipes/make_synthetic.py --dataset digits --num-images 10000 --output digits_synth.npz --seed 0

This writes one archive from a Gaussian mixture per class, in the form that --synthetic of adv_train.py reads.

    python recipes/make_synthetic.py --method diffusion --train --num-images 2000 --output FOLDER
    torchrun --nproc-per-node 8 recipes/make_synthetic.py --method diffusion --dataset torch/cifar10 --data-dir DIR \
        --generator DDPM_FOLDER --labeller-checkpoint model_best.pth.tar --num-images 1000000 --output FOLDER

These write parts of the same form and manifest.json. The same command resumes an interrupted run.
"""
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from timm_paf import synthesis  # isort: skip  # before torch, which reads what the package sets for OpenMP
import torch
from rich.progress import Progress

from timm_paf.data import LabelledImages, all_labels, free_bytes, place_on_device, sample_synthetic, save_archive
from timm_paf.engine.classes import match_training
from timm_paf.engine.cli import RunFailed, parse_config, run
from timm_paf.engine.data import open_dataset
from timm_paf.engine.distributed import Processes, peer_failure, start_processes
from timm_paf.synthesis import Labeller, PartMaker, SyntheticConfig


def prepare(argv: list[str] | None = None) -> Callable[[], None]:
    """Read the settings and open the inputs; return the work to be done."""
    config = parse_config(SyntheticConfig, argv, description=(__doc__ or '').splitlines()[0])
    if config.method == 'mixture':
        line = make_mixture(config, open_images(config))
        return lambda: print(line)
    synthesis.import_diffusers()
    processes = start_processes(config.device)
    with peer_failure(processes, ''):
        fits = config.train and not config.generator_folder.exists()
        if fits and processes.is_distributed:
            raise ValueError('--train runs in one process; run it once without torchrun.')
        with processes.patient() as patient, patient.rank_zero_first():
            train = open_images(config)
        labeller = synthesis.load_labeller(config, train, processes.device)
        if not fits:
            maker = open_generator(config, train, labeller, processes)
            return lambda: make_parts(maker, processes)
        synthesis.check_folder(Path(config.output), None)
    return lambda: train_and_make_parts(config, train, labeller, processes)


def open_images(config: SyntheticConfig) -> LabelledImages:
    """Read the training split into memory, with class numbers as labels."""
    cpu, source = torch.device('cpu'), open_dataset(config.dataset, config).train
    source, names = match_training(source, config.class_names, num_classes=config.num_classes)
    (images,) = place_on_device([source], cpu, budget=free_bytes(cpu), required=True)
    assert isinstance(images, LabelledImages)  # because they are in memory
    return dataclasses.replace(images, labels=all_labels(images), class_names=names or None)


def make_mixture(config: SyntheticConfig, train: LabelledImages) -> str:
    """Sample and write one archive; return the line to print."""
    data = sample_synthetic(
        train, config.num_images, seed=config.seed, components=config.components, mixtures=config.mixtures)
    save_archive(config.output, data)
    counts = data.labels.bincount(minlength=data.num_classes).tolist()
    return f'{config.output}: {len(data)} images from {len(train)} of {train.name}; per class: {counts}'


def open_generator(
        config: SyntheticConfig, train: LabelledImages, labeller: Labeller | None, processes: Processes) -> PartMaker:
    """Load the diffusion model, and check that the folder is new or was begun with the same plan."""
    generator = synthesis.load_diffusion(config, train, device=processes.device)
    if not generator.conditional and labeller is None:
        raise ValueError(f'{config.generator_folder}: the model is not class-conditional; give --labeller-checkpoint.')
    maker = PartMaker(config=config, generator=generator, labeller=labeller, source=train)
    synthesis.check_folder(Path(config.output), maker.plan())
    return maker


def train_and_make_parts(
        config: SyntheticConfig, train: LabelledImages, labeller: Labeller | None, processes: Processes) -> None:
    """Fit a generator to the training images, then sample from it."""
    print(f'fitting a diffusion model to {len(train)} images of {train.name}, {config.train_steps} steps')
    with progress_bar('steps', config.train_steps, processes) as show:
        loss = synthesis.fit_diffusion(config, train, device=processes.device, progress=show)
    print(f'{config.generator_folder}: fitted, mean loss of the last steps {loss:.4f}')
    make_parts(open_generator(config, train, labeller, processes), processes)


def make_parts(maker: PartMaker, processes: Processes) -> None:
    """Make the parts that are missing and the manifest."""
    started, output = time.perf_counter(), maker.config.output
    own = -(-maker.config.num_images // processes.world_size)
    with peer_failure(processes, 'start the command again.'), progress_bar('images', own, processes) as show:
        manifest = maker.fill(Path(output), processes, progress=show, report=lambda part: print(
            f'{part["file"]}: {part["images"]} images, {part["drawn"]} sampled'))
        processes.close()
    if processes.is_primary:
        counts, seconds = manifest['counts'], time.perf_counter() - started
        rejected = ', '.join(f'{count} {reason}' for reason, count in counts['rejected'].items() if count) or 'none'
        print(f'{output}: {counts["images"]} images, {counts["drawn"]} sampled, {seconds:.1f} s; '
              f'left out: {rejected}; per class: {counts["per_class"]}')


@contextlib.contextmanager
def progress_bar(what: str, total: int, processes: Processes) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yields a function that takes the number done."""
    with Progress(transient=True, disable=not (processes.is_primary and sys.stdout.isatty())) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def execute(work: Callable[[], None]) -> None:
    """Do the work of `prepare`; its errors end the command with one line and status 1."""
    try:
        work()
    except (synthesis.SynthesisFailed, OSError) as error:
        raise RunFailed(f'{error} Finished parts are kept.') from error


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    return run(lambda: prepare(argv), execute)


if __name__ == '__main__':
    sys.exit(main())
