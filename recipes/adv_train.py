"""Adversarial training, from a data set and a model's name to a robustness report.

    python recipes/adv_train.py --model resnet18_psoftplus
    torchrun --nproc-per-node 8 recipes/adv_train.py -c FILE --experiment NAME --resume auto

Without other arguments it trains on the embedded digits as configs/digits.yaml says. A run's folder (--output DIR,
--experiment NAME) receives args.yaml, summary.csv, selection.json, report.json, report.html and the checkpoints
last.pth.tar, previous.pth.tar and model_best.pth.tar. A run that is killed goes on with --resume auto as if nothing had
happened.

Exit status: 0 finished, 1 failed, 2 wrong settings or files, 3 stopped by SIGTERM or SIGINT with a checkpoint written,
130 stopped by a second SIGINT.
"""
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from timm.task import TrainingTask
from timm.utils import random_seed
from torch.nn.parallel import DistributedDataParallel

from timm_paf.data import Augment, DataChanged, ImageSource, LabelledImages, MixedBatches
from timm_paf.engine.announce import announce
from timm_paf.engine.checkpoint import RunSaver, best_epoch
from timm_paf.engine.cli import RunFailed, RunStopped, parse_config, run
from timm_paf.engine.compilation import CompiledGraphs
from timm_paf.engine.config import TrainConfig, plain
from timm_paf.engine.distributed import Processes, StopSignals, peer_failure, start_processes
from timm_paf.engine.dry_run import dry_run
from timm_paf.engine.epoch import Epoch, save, shape_values, stop_here
from timm_paf.engine.loggers import Trackers
from timm_paf.engine.optim import learning_rate, make_average, make_optimizer, make_scheduler
from timm_paf.engine.progress import TrainingView, announcement
from timm_paf.engine.report import report_robustness, report_selection
from timm_paf.engine.resume import choose_start, go_on, settings_of_run
from timm_paf.engine.settings import open_dataset, open_synthetic, placed, verify
from timm_paf.engine.state import Progress, write_summary
from timm_paf.engine.step import Updates
from timm_paf.engine.task import make_model, make_task
from timm_paf.engine.validation import validate

CONFIGS = Path(__file__).parent / 'configs'


@dataclasses.dataclass
class Run:
    """Everything that a run needs, opened and checked; nothing has been written yet."""
    config: TrainConfig
    folder: Path
    processes: Processes
    batches: MixedBatches
    val: LabelledImages
    test: LabelledImages
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    updates: Updates
    updates_per_epoch: int
    epochs: int
    saver: RunSaver
    trackers: Trackers
    progress: Progress
    console: Console
    notes: list[str]

    def say(self, text: str) -> None:
        """Write a line, which stays one where there is no screen to fit."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)


def prepare(argv: list[str] | None = None) -> Run | None:
    """Settings to a run that is ready to start or to go on; None if it is finished."""
    config = parse_config(
        TrainConfig, argv, description=(__doc__ or '').splitlines()[0], default_config=lambda: CONFIGS / 'digits.yaml',
        base=settings_of_run)
    processes = start_processes(config.device)
    with peer_failure(processes, 'nothing has been written.'):
        start = processes.broadcast_object(lambda: choose_start(config))
        console = Console(quiet=not processes.is_primary)
        if start.finished:
            console.print(f'{start.folder} is finished; nothing to do.', highlight=False, soft_wrap=True)
            processes.close()
            return None
        config = dataclasses.replace(
            config, device=str(processes.device), lr=learning_rate(config), output=str(start.folder.parent),
            experiment=start.folder.name)
        job = make_run(config, start.folder, processes, console)
        job.notes = list(start.notes)
        if start.checkpoint is not None:
            job.notes += go_on(job, start.checkpoint)
        return job


def make_run(config: TrainConfig, folder: Path, processes: Processes, console: Console) -> Run:
    """A run from its settings, at its beginning."""
    batches, val, test = open_data(config, processes, console)
    updates_per_epoch = config.updates_per_epoch or len(batches)
    model = make_model(config, batches.real, processes)
    task = make_task(config, model, processes, updates_per_epoch)
    optimizer = make_optimizer(config, model)
    task.attach_optimizer(optimizer)
    scheduler, epochs = make_scheduler(config, optimizer, updates_per_epoch)
    # the average is of the bare model, and processes exchange the gradients of the compiled one
    average = make_average(config, task, epochs * updates_per_epoch)
    if config.torchcompile is not None:
        try:
            # one graph for each size of batch: with symbolic sizes, what a batch gives depends on those before it
            task.compile(backend=config.torchcompile, mode=config.torchcompile_mode, dynamic=False)
        except RuntimeError as error:  # compiling itself comes later; this is about the names
            raise ValueError(f'--torchcompile {config.torchcompile}: {error}') from None
    if processes.is_distributed:
        distribute(task, processes)
        random_seed(config.seed, processes.rank)
    updates = Updates(
        config, task=task, optimizer=optimizer, scheduler=scheduler, average=average, processes=processes)
    saver = RunSaver(
        folder, metric=f'eval_{config.eval_metric}', hist=config.checkpoint_hist,
        raw_metric=f'eval_{config.eval_metric}_raw' if config.model_ema else None)
    trackers = Trackers(
        folder, plain(config), log_tensorboard=config.log_tensorboard and processes.is_primary,
        log_wandb=config.log_wandb and processes.is_primary, wandb_project=config.wandb_project,
        wandb_tags=config.wandb_tags)
    return Run(
        config=config, folder=folder, processes=processes, batches=batches, val=val, test=test, task=task,
        optimizer=optimizer, scheduler=scheduler, updates=updates, updates_per_epoch=updates_per_epoch, epochs=epochs,
        saver=saver, trackers=trackers, progress=Progress.start(processes.device), console=console, notes=[])


def distribute(task: TrainingTask, processes: Processes) -> None:
    """Let processes average their gradients; BatchNorm's running statistics stay each one's own until validation."""
    known = inspect.signature(DistributedDataParallel).parameters
    keep_buffers = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'  # torch < 2.14
    on_gpu = processes.device.type == 'cuda'
    task.prepare_distributed(device_ids=[processes.local_rank] if on_gpu else None, **{keep_buffers: False})


def open_data(
        config: TrainConfig,
        processes: Processes,
        console: Console,
) -> tuple[MixedBatches, LabelledImages, LabelledImages]:
    """The batches to train on, and the images to validate and to test on."""
    synthetic: list[ImageSource] = []
    with processes.rank_zero_first():
        train, val, test = open_dataset(config.dataset, config, console=console)
        if config.synthetic_fraction > 0:
            synthetic = open_synthetic(
                config.synthetic, joined=not config.synthetic_weights, num_synthetic=config.num_synthetic,
                dataset=config.dataset, like=train, console=console)
    if config.verify_data and processes.is_primary:
        verify([*([train] if Path(config.dataset).exists() else []), *synthetic], console)
    train, *synthetic = placed(
        [train, *synthetic], processes.device, mode=config.data_on_device, budget=config.data_on_device_budget)
    return MixedBatches(
        train, synthetic, batch_size=config.batch_size, synthetic_fraction=config.synthetic_fraction, seed=config.seed,
        synthetic_weights=config.synthetic_weights or None, real_augment=config.augment(),
        synthetic_augment=config.augment() if config.synthetic_augment == 'same' else Augment(),
        smoothing=config.smoothing, synthetic_smoothing=config.synthetic_smoothing, rank=processes.rank,
        world_size=processes.world_size, device=processes.device), val, test


def train(job: Run | None) -> None:
    """Train, keep the checkpoint that is best on the validation split, measure it on the test split."""
    if job is None:
        return
    with peer_failure(job.processes, f'the checkpoints in {job.folder} are kept; go on with --resume auto.'):
        if job.config.dry_run:
            dry_run(job)
            job.processes.close()
            return
        if job.processes.is_primary:
            open_folder(job)
        with StopSignals() as stop:
            try:
                fit(job, stop)
            finally:  # a process that ends inside the group may be aborted
                job.processes.close()
            if job.processes.is_primary:
                report_selection(job)
                report_robustness(job, stop)


def open_folder(job: Run) -> None:
    """Make the run's folder, or bring it to the state of the checkpoint that the run goes on from."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / 'args.yaml').write_text(yaml.safe_dump(plain(job.config), sort_keys=False))
    if job.progress.rows:
        write_summary(job.progress.rows, job.folder / 'summary.csv')
    else:
        (job.folder / 'summary.csv').unlink(missing_ok=True)
    job.saver.tidy(job.progress.rows)
    for note in job.notes:
        job.say(note)


def fit(job: Run, stop: StopSignals) -> None:
    """Train, validate, record and save, epoch by epoch."""
    config, progress, first = job.config, job.progress, job.progress.epoch
    graphs = CompiledGraphs()
    view = TrainingView(job.console, epochs=job.epochs, steps=job.updates_per_epoch, first=first)
    announce(job.console, job.batches)
    view.say(announcement(job))
    with view, job.trackers:
        if progress.rows:  # a process that was killed may have saved an epoch and not told of it
            job.trackers.log(int(progress.rows[-1]['epoch']), progress.rows[-1])
        while progress.epoch < job.epochs:
            epoch = progress.epoch
            try:
                trained = Epoch(job, view, stop, estimate=epoch == first).train()
                checked: dict[str, float | None] = {'clean': None, 'robust': None}
                if (epoch + 1) % config.val_interval == 0 or epoch + 1 == job.epochs:
                    checked = {**validate(job, lambda: bool(stop.received))}
                    graphs.settle()
            except DataChanged as error:
                raise RunFailed(
                    f'{error}; the checkpoints in {job.folder} are from before epoch {epoch + 1}.') from error
            except RunStopped:
                stop_here(job, stop)
            progress.rows.append({
                'epoch': epoch, **{f'train_{name}': value for name, value in trained.items()},
                **{f'eval_{name}': value for name, value in checked.items()},
                **{f'act_{name}': value for name, value in progress.activations.items()},
                'lr': job.optimizer.param_groups[0]['lr']})
            progress.epoch += 1
            progress.next_epoch()
            if job.scheduler is not None:
                job.scheduler.step(progress.epoch)
            save(job, epoch_ended=True)
            if job.processes.is_primary:
                write_summary(progress.rows, job.folder / 'summary.csv')
            job.trackers.log(epoch, progress.rows[-1])
            view.epoch(
                epoch, loss=trained['loss'], robust=trained['robust'], val_clean=checked['clean'],
                val_robust=checked['robust'], images_per_second=trained['images_per_second'],
                shape=shape_values(job.task.get_trainable_module()),
                best=best_epoch(progress.rows, job.saver.metric) == epoch, data_wait=trained['data_wait'])
    if config.torchcompile is not None:
        job.say(str(graphs))


if __name__ == '__main__':
    sys.exit(run(prepare, train))
