"""The parts of a training run, opened and checked, and their state."""
import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from timm.utils import random_seed, unwrap_model
from torch import nn

from timm_paf.attacks import autoattack_passes
from timm_paf.attacks.balls import check_radius
from timm_paf.engine.alpha import AlphaWatch
from timm_paf.engine.callbacks import Callback
from timm_paf.engine.checkpoint import Progress, load_run_state, run_state
from timm_paf.engine.checkpoint_files import CheckpointFiles, read_run
from timm_paf.engine.cli import replace_unencodable
from timm_paf.engine.data import Images, open_training_data
from timm_paf.engine.distributed import StopSignals, peer_failure, start_processes
from timm_paf.engine.ema import EMA
from timm_paf.engine.execution import with_device_defaults
from timm_paf.engine.loggers import make_loggers
from timm_paf.engine.model import make_task, prepare_model, start_task, untrained_model
from timm_paf.engine.optim import learning_rate, make_optimizer
from timm_paf.engine.progress import TimeLeft, TrainingView
from timm_paf.engine.resume import RunFinished, find_start
from timm_paf.engine.schedule import make_schedule
from timm_paf.engine.step import TrainStep
from timm_paf.engine.train_config import TrainConfig

__all__ = ['Run']


class Run:
    """The parts of a training run: data, model, task, optimizer, schedule, average, files; `Trainer` trains with them.

    Arguments and errors are those of `Trainer`.
    """

    def __init__(
            self, config: TrainConfig, *, model: nn.Module | None = None, train: Images | None = None,
            val: Images | None = None, test: Images | None = None, callbacks: Sequence[Callback] = (),
            console: Console | None = None,
    ) -> None:
        if model is not None and config.model == TrainConfig.model:
            config = dataclasses.replace(config, model=type(model).__name__)
        if train is not None and config.dataset == TrainConfig.dataset:
            config = dataclasses.replace(config, dataset='own data')
        self.processes = processes = start_processes(config.device)
        replace_unencodable()
        self.console = (console or Console()) if processes.is_primary else Console(quiet=True)
        self.stop = StopSignals(enabled=not config.dry_run)
        with peer_failure(processes, 'nothing has been written.'):
            start = processes.broadcast_object(lambda: find_start(config))
            if start.finished:
                processes.close()
                raise RunFinished(f'{start.folder} is finished; nothing to do.' if processes.is_primary else '')
            self.folder = start.folder
            config = with_device_defaults(config, processes.device)
            self.config = config = dataclasses.replace(
                config, device=str(processes.device), lr=learning_rate(config), output=str(start.folder.parent),
                experiment=start.folder.name)
            self.data, self.val, self.test, names, lines = open_training_data(
                config, processes, self.console, train=train, val=val, test=test)
            self.config = config = dataclasses.replace(config, class_names=names)
            check_radius(config.threat().radius, config.norm, torch.empty(1, *self.data.real.image_shape))
            self.updates_per_epoch = config.updates_per_epoch or len(self.data)
            random_seed(config.seed, 0)
            self._untrained = copy.deepcopy(model)
            model, self.notes = untrained_model(config, model, self.data.real)
            model = prepare_model(config, model, processes)
            self.task = make_task(config, model, processes, self.updates_per_epoch)
            self.optimizer = make_optimizer(config, model)
            self.task.attach_optimizer(self.optimizer)
            self.schedule, self.epochs = make_schedule(config, self.optimizer, self.updates_per_epoch)
            # averages the plain model, so it comes before compiling and before DistributedDataParallel
            self.ema = EMA(
                self.task, decay=config.model_ema_decay, warmup=config.model_ema_warmup,
                copied=math.ceil(config.model_ema_copy * self.epochs * self.updates_per_epoch),
            ) if config.model_ema else None
            start_task(config, self.task, processes)
            self.step = TrainStep(
                config, task=self.task, optimizer=self.optimizer, schedule=self.schedule, ema=self.ema,
                processes=processes)
            metric = f'eval_{config.eval_metric}'
            self.files = CheckpointFiles(
                self.folder, metric=metric, hist=config.checkpoint_hist,
                raw_metric=f'{metric}_raw' if config.model_ema else None)
            self.callbacks: list[Callback] = []
            if processes.is_primary:
                view = TrainingView(
                    self.console, steps=self.updates_per_epoch, device=processes.device, time=self.time_left())
                self.callbacks = [view, *make_loggers(config, self.folder), *callbacks]
            self.progress = Progress.start(processes.device)
            self.alphas = AlphaWatch(unwrap_model(self.model))
            self.notes += [*start.notes, *lines]
            if self.data.left_out:
                self.notes.append(
                    f'the last batch of every epoch is left out, because BatchNorm cannot train on one image: '
                    f'{self.data.left_out} of {len(self.data.real)} training images, others in each epoch')
            if (path := start.checkpoint) is not None:
                # of several nodes only the first needs to see the file
                state = processes.broadcast_object(lambda: read_run(path)) if processes.nodes > 1 else read_run(path)
                notes = self.load_state_dict(state)
                self.notes += [f'resuming from {path}: epoch {self.epoch + 1}, update {self.progress.update}', *notes]

    @property
    def epoch(self) -> int:
        """Number of finished epochs, which is the number of the epoch in progress, from 0."""
        return self.progress.epoch

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self.task.bare_module

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and messages."""
        return self.processes.is_primary

    def state_dict(self) -> dict[str, Any]:
        """Weights and training state, for exact resume; every process has to call it, process 0 gets it, not copied."""
        return run_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Load a `state_dict`, in every process, into this run, which has just been made.

        Returns:
            Reasons why the run may not continue exactly, as lines to show.

        Raises:
            ValueError: If settings or data differ and `config.resume_changed` is not set, or the state does not fit.
        """
        return load_run_state(self, state)

    def fresh_model(self) -> nn.Module:
        """A new copy of the network as it was before training, on the CPU; random numbers of the run stay the same."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            return untrained_model(self.config, copy.deepcopy(self._untrained), self.data.real)[0]

    def description(self) -> str:
        """The run in one line."""
        config, data = self.config, self.data
        parameters = sum(p.numel() for p in self.task.trainable_module.parameters())
        attack = 'no attack' if config.task == 'plain' else f'PGD-{config.attack_steps} at eps {config.eps}'
        several = f', {self.processes.world_size} processes' if self.processes.is_distributed else ''
        return (
            f'{config.model} ({parameters:,} parameters) on {config.dataset}: {len(data.real):,} real images '
            f'({"x".join(map(str, data.real.image_shape))}), {len(self.val):,} more for validation, '
            f'{data.synthetic_per_batch} of {config.batch_size} images per batch synthetic, {self.epochs} '
            f'epoch{"s" * (self.epochs > 1)} of {self.updates_per_epoch} updates, {attack}, on '
            f'{self.processes.device}{several}; settings: {config.config or "defaults"}')

    def time_left(self) -> TimeLeft:
        """An estimate of the time of the run, from its settings."""
        config, world_size, test = self.config, self.processes.world_size, len(self.test or ())
        steps = 0 if config.task == 'plain' else config.attack_steps
        chosen = config.autoattack_arguments()
        costs = [] if chosen['autoattack_version'] is None else autoattack_passes(
            *chosen.values(), norm=config.norm, classes=self.data.real.num_classes)
        attacked = min(test, config.n_examples or test)
        return TimeLeft(
            epochs=self.epochs, interval=config.val_interval,
            images=self.updates_per_epoch * config.batch_size / world_size,
            passes=2 * steps + (4 if config.task in ('trades', 'mart') else 2),
            validation=(1 + config.model_ema) * len(self.val) * 2 * (
                config.validation_attack(0).steps + 1) / world_size,
            measurement=test + min(test, config.n_pgd or test) * (2 * config.pgd_steps + 1),
            autoattack=(attacked * sum(costs[:1]), attacked * sum(costs[1:])))

    def time_estimate(self, seconds_per_image: float) -> str:
        """Time of the rest of the run in words, from the time of one process for one training image."""
        time = self.time_left()
        time.seconds_per_pass = seconds_per_image / time.passes
        return time.words(self.progress.update / self.updates_per_epoch, self.epoch)

    def say(self, text: str) -> None:
        """Pass a line to the callbacks, which show it."""
        self._notify(lambda callback: callback.on_message(text))

    def _notify(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            call(callback)
