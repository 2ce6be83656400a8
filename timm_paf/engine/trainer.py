"""A training run: data, model, task, optimizer, validation, checkpoints and the final measurement."""
import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from timm_paf._files import whole_file
from timm_paf.activations import activation_summary
from timm_paf.data import Batch, DataChanged, Prefetched
from timm_paf.engine.callbacks import Callback
from timm_paf.engine.checkpoint import CheckpointFiles, best_epoch, read_run, write_summary
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.compilation import CompiledGraphs
from timm_paf.engine.config import TrainConfig, plain
from timm_paf.engine.data import Images, open_training_data, source_lines
from timm_paf.engine.distributed import StopSignals, peer_failure, signal_name, start_processes
from timm_paf.engine.ema import make_ema
from timm_paf.engine.loggers import make_loggers
from timm_paf.engine.model import make_task, prepare_model, start_task, untrained_model
from timm_paf.engine.optim import learning_rate, make_optimizer
from timm_paf.engine.progress import ProgressEstimator, TrainingView, shape_values, time_estimate
from timm_paf.engine.report import final_report, write_report, write_selection
from timm_paf.engine.resume import RunFinished, find_start
from timm_paf.engine.schedule import make_schedule
from timm_paf.engine.state import Progress, changed_settings, data_sizes, load_rank_state, rank_state
from timm_paf.engine.step import TrainStep, batches_from
from timm_paf.engine.validation import selection, selection_lines, validate
from timm_paf.evaluation import RobustnessReport, library_versions
from timm_paf.models import load_weights

__all__ = ['Trainer']

FORMAT = 1  # of the training state in a checkpoint
HYPERPARAMETERS = ('lr', 'initial_lr', 'weight_decay', 'momentum', 'nesterov', 'betas', 'eps')


class Trainer:
    """A training run. It is opened and checked when it is made, and writes nothing before training starts.

    `fit` trains; it is this loop, which you can write yourself:

        with trainer.running():
            while trainer.epoch < trainer.epochs:
                for batch in trainer.batches():
                    trainer.train_step(batch)
                row = trainer.end_epoch(trainer.validate() if trainer.validation_due else {})
                trainer.checkpoint()
                trainer.log(row)

    A subclass can override `train_step`, `batches`, `validate`, `checkpoint` and `evaluate`.

    Args:
        config: Settings. `Trainer.config` has the resolved ones: device, learning rate and folder.
        model: Own network for images in [0, 1], in place of `config.model`, which is then only a name. It is trained in
            place.
        train: Own training images in place of `config.dataset`: arrays (images, labels), an `ImageSource`, or a
            map-style `torch.utils.data.Dataset` of pairs (image, label).
        val: Own validation images; without them, `config.val_size` images of `train` are held out.
        test: Own test images; `evaluate` needs them if `train` is given.
        callbacks: Watch the run, in addition to the terminal and the loggers of the settings.
        console: Where to show progress; `Console(quiet=True)` shows nothing.

    Raises:
        RunFinished: If `config.resume` names a run that is finished.
        ValueError: If settings, data and model do not fit together.
        OSError: If files are missing, or the folder cannot be used.
    """

    def __init__(
            self,
            config: TrainConfig,
            *,
            model: nn.Module | None = None,
            train: Images | None = None,
            val: Images | None = None,
            test: Images | None = None,
            callbacks: Sequence[Callback] = (),
            console: Console | None = None,
    ) -> None:
        if model is not None and config.model == TrainConfig.model:
            config = dataclasses.replace(config, model=type(model).__name__)
        if train is not None and config.dataset == TrainConfig.dataset:
            config = dataclasses.replace(config, dataset='own data')
        self.processes = processes = start_processes(config.device)
        self.console = console or Console()
        if not processes.is_primary:
            self.console = Console(quiet=True)
        self.stop = StopSignals()
        with peer_failure(processes, 'nothing has been written.'):
            start = processes.broadcast_object(lambda: find_start(config))
            if start.finished:
                processes.close()
                raise RunFinished(f'{start.folder} is finished; nothing to do.' if processes.is_primary else '')
            self.folder = start.folder
            self.config = config = dataclasses.replace(
                config, device=str(processes.device), lr=learning_rate(config), output=str(start.folder.parent),
                experiment=start.folder.name)
            self.data, self.val, self.test = open_training_data(
                config, processes, self.console, train=train, val=val, test=test)
            self.updates_per_epoch = config.updates_per_epoch or len(self.data)
            torch.manual_seed(config.seed)
            self._untrained = copy.deepcopy(model)
            model = prepare_model(config, self._new_model(model), processes)
            self.task = make_task(config, model, processes, self.updates_per_epoch)
            self.optimizer = make_optimizer(config, model)
            self.task.attach_optimizer(self.optimizer)
            self.schedule, self.epochs = make_schedule(config, self.optimizer, self.updates_per_epoch)
            # averages the plain model, so it comes before compiling and before DistributedDataParallel
            self.ema = make_ema(config, self.task, self.epochs * self.updates_per_epoch)
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
                    self.console, epochs=self.epochs, steps=self.updates_per_epoch, device=processes.device)
                self.callbacks = [view, *make_loggers(config, self.folder), *callbacks]
            self.progress = Progress.start(processes.device)
            self.notes = list(start.notes)
            self._graphs = CompiledGraphs()
            self._estimator: ProgressEstimator | None = ProgressEstimator()
            self._saved = 0.
            self._running = False
            if start.checkpoint is not None:
                self._resume(start.checkpoint)

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

    @property
    def validation_due(self) -> bool:
        """Whether the epoch in progress ends with a validation."""
        return (self.epoch + 1) % self.config.val_interval == 0 or self.epoch + 1 == self.epochs

    def fit(self) -> None:
        """Train all epochs that are left: train, validate, save and log, epoch by epoch.

        Raises:
            RunFailed: If training cannot continue; the checkpoints are kept.
            RunStopped: After SIGTERM or SIGINT; a checkpoint is written.
        """
        with self.running():
            while self.epoch < self.epochs:
                for batch in self.batches():
                    self.train_step(batch)
                row = self.end_epoch(self.validate() if self.validation_due else {})
                self.checkpoint()
                self.log(row)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Context of a training loop: opens the folder and the callbacks, saves when a signal stops the run.

        Several processes leave their process group at the end.
        """
        advice = f'the checkpoints in {self.folder} are kept; resume with --resume auto.'
        failure: BaseException | None = None
        with peer_failure(self.processes, advice), self.stop:
            try:
                if self.is_primary:
                    self._open_folder()
                self._running, self._graphs = True, CompiledGraphs()
                for line in (*self.notes, *source_lines(self.data), self.description()):
                    self.say(line)
                self._notify(lambda callback: callback.on_start(self.progress.rows))
                yield
            except RunStopped as stopped:
                failure = stopped
                self._stop()
            except DataChanged as error:
                failure = error
                raise RunFailed(
                    f'{error}; the checkpoints in {self.folder} are from before epoch {self.epoch + 1}.') from error
            except BaseException as error:
                failure = error
                raise
            finally:
                self._running = False
                self._notify(lambda callback: callback.on_end(failure))
                self.processes.close()  # torch may abort a process that ends inside the group
        if self.config.torchcompile is not None:
            self.say(str(self._graphs))

    def batches(self) -> Iterator[Batch]:
        """Batches of the epoch in progress, from its next update on; each is for one call of `train_step`.

        Between batches it shows metrics and, inside `running`, saves every `checkpoint_minutes`.

        Raises:
            RunFailed: If a loss is not finite.
            RunStopped: If a signal stops the run.
        """
        progress, end = self.progress, (self.epoch + 1) * self.updates_per_epoch
        started, waited = time.monotonic() - progress.seconds, progress.waited
        self._saved = time.monotonic()
        self.task.train()
        with Prefetched(
            batches_from(self.data, progress.update, end - progress.update), device=self.processes.device,
            threaded=self.config.prefetch,
        ) as stream:
            for update, batch in enumerate(stream, progress.update + 1):
                yield batch
                if progress.update != update:
                    raise RuntimeError('each batch needs one call of train_step, which has to call record.')
                if update == end:
                    progress.activations = activation_summary(self.task.trainable_module)
                progress.seconds = time.monotonic() - started
                progress.waited = waited + stream.waited
                self.maybe_log()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights once: attack, loss, backward pass, optimizer, average, schedule.

        Args:
            batch: This process's share of the images of an update.

        Returns:
            Means over the batch as tensors on the device: 'loss', and 'robust', the accuracy in % on the images that
            were trained on. Reading them makes the device wait.
        """
        loss, correct = self.step(batch, self.progress.update)
        return self.record(batch, loss, correct)

    def record(self, batch: Batch, loss: Tensor, correct: Tensor) -> dict[str, Tensor]:
        """Count an update; an own `train_step` that does not call the inherited one calls this.

        Args:
            batch: The images.
            loss: Sum of their losses, on the device.
            correct: Number of images classified correctly, on the device.

        Returns:
            The metrics that `train_step` returns.
        """
        self.progress.record(loss, correct, len(batch))
        return {'loss': loss / len(batch), 'robust': 100 * correct / len(batch)}

    def maybe_log(self) -> None:
        """Every `log_interval` updates: read metrics, show them, save if it is time, stop if a signal arrived."""
        progress, config = self.progress, self.config
        step = progress.update - self.epoch * self.updates_per_epoch - 1
        last = step + 1 == self.updates_per_epoch
        due = self._running and 0 < config.checkpoint_minutes <= (time.monotonic() - self._saved) / 60
        regular = last or step % config.log_interval == 0
        # several processes have to do the same, so they ask each other, at regular updates only
        if not regular and (self.processes.is_distributed or not (due or self.stop.received)):
            self._notify(lambda callback: callback.on_update(self.epoch, step, {}, {}))
            return
        stopped, due_anywhere, bad = self.processes.all_reduce_max(
            self.stop.received, int(due), int(progress.bad))
        if bad >= 0:
            raise RunFailed(
                f'the loss became NaN or infinite at step {bad % self.updates_per_epoch} of epoch {self.epoch + 1}; '
                f'the checkpoints in {self.folder} are from before it. Try a smaller --lr, or --warmup-epochs.')
        self._show(step)
        if stopped:
            self.stop.received = stopped
            raise RunStopped
        if due_anywhere and not last:
            self.checkpoint()
            self._saved = time.monotonic()

    def validate(self) -> dict[str, float]:
        """Clean accuracy and accuracy under PGD on the validation split, in percent: 'clean' and 'robust'.

        With averaged weights these belong to the average; 'clean_raw' and 'robust_raw' belong to the raw weights.
        """
        return validate(
            self.task, self.val, self.config, self.processes, precision=self.step.precision,
            stop_requested=lambda: bool(self.stop.received))

    def end_epoch(self, validation: Mapping[str, float]) -> dict[str, Any]:
        """Finish the epoch in progress: add its row to the summary and move the schedule.

        Args:
            validation: Result of `validate`; empty if the epoch has no validation.

        Returns:
            The row of summary.csv.
        """
        progress = self.progress
        if validation:
            self._graphs.settle()
        measured: dict[str, float | None] = {'clean': None, 'robust': None, **validation}
        row = {
            'epoch': self.epoch, **{f'train_{name}': value for name, value in progress.means(self.processes).items()},
            **{f'eval_{name}': value for name, value in measured.items()},
            **{f'act_{name}': value for name, value in progress.activations.items()},
            'lr': self.optimizer.param_groups[0]['lr']}
        progress.rows.append(row)
        progress.next_epoch()
        self._estimator = None
        if self.schedule is not None:
            self.schedule.step(self.epoch)
        return row

    def checkpoint(self) -> None:
        """Write a checkpoint; after the end of an epoch also the best checkpoints and summary.csv.

        Every process has to call it.

        Raises:
            RunFailed: If it cannot be written; the previous ones are kept.
        """
        state = self.state_dict()
        if not self.is_primary:
            return
        rows = self.progress.rows
        epoch_ended = bool(rows) and not self.progress.images
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files.save(state, rows, epoch_ended=epoch_ended)
        except OSError as error:
            raise RunFailed(
                f'the checkpoint of update {self.progress.update} cannot be written ({error}); the previous ones are '
                f'kept in {self.folder}; resume with --resume auto.') from error
        if epoch_ended:
            write_summary(rows, self.folder / 'summary.csv')

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass the row of a finished epoch to the callbacks."""
        shape = shape_values(self.task.trainable_module)
        best = best_epoch(self.progress.rows, self.files.metric) == row['epoch']
        self._notify(lambda callback: callback.on_epoch(row, shape=shape, best=best))

    def evaluate(self) -> RobustnessReport:
        """Clean, PGD and AutoAttack accuracy of the best checkpoint on the test split.

        Writes selection.json, report.html and report.json, which marks the run as finished. Before the first
        validation it measures the weights as they are (the average if there is one) and writes nothing. This process
        measures alone.

        Raises:
            ValueError: If there are no test images.
            RunFailed: If the model cannot be measured.
            RunStopped: After SIGTERM or SIGINT; an interrupted AutoAttack resumes with --resume auto.
        """
        if self.test is None:
            raise ValueError('there are no test images; pass them as Trainer(..., test=...).')
        config, rows = self.config, self.progress.rows
        selected = best_epoch(rows, self.files.metric) is not None and self.files.best.exists()
        writes = selected and self.is_primary
        found = selection(rows, metric=config.eval_metric, averaged=config.model_ema) if selected else {}
        if writes:
            write_selection(found, self.folder)
            attack = f'under PGD-{config.validation_attack(0).steps}'
            for line in selection_lines(found, 'clean' if config.eval_metric == 'clean' else attack):
                self.say(line)
        model = self.fresh_model()
        if selected:
            load_weights(model, self.files.best)
        else:
            weights = self.task.get_checkpoint_state(ema=self.task.has_ema())
            model.load_state_dict(weights['state_dict_ema' if self.task.has_ema() else 'state_dict'])
        with self.stop:
            report = final_report(
                model.to(self.processes.device), self.test, config, device=self.processes.device, console=self.console,
                stop=self.stop, checkpoint=self.files.best if selected else None,
                state=self.folder / 'autoattack' if writes and config.autoattack != 'none' else None)
        if writes:
            write_report(
                report, self.folder, rows, config=config, selection=found, before=self.fresh_model(), after=model)
        self.console.print(report.table())
        if writes:
            self.say(f'results in {self.folder}; open report.html in a browser')
        return report

    def state_dict(self) -> dict[str, Any]:
        """Weights and training state, for exact resume; tensors are not copied.

        Every process has to call it. The state is complete in process 0 and empty in the others.
        """
        progress, task = self.progress, self.task
        ranks = self.processes.gather_object(rank_state(progress, task, self.processes))
        if not self.is_primary:
            return {}
        rows, scaler = progress.rows, self.step.scaler
        metric = rows[-1].get(self.files.metric) if rows else None
        return {
            'epoch': self.epoch - 1,  # the last finished one, as in timm
            'arch': self.config.model,
            'args': plain(self.config),
            'optimizer': self.optimizer.state_dict(),
            'version': 2,
            **task.get_checkpoint_state(),
            **task.get_checkpoint_state(ema=True),
            **({} if metric is None else {'metric': metric}),
            **({} if scaler is None else {'amp_scaler': scaler.state_dict()}),
            'run': {
                'format': FORMAT, 'epoch': self.epoch, 'update': progress.update, 'rows': list(rows), 'ranks': ranks,
                'activations': progress.activations, 'data': data_sizes(self.data, self.val),
                'versions': library_versions(),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Load the state of a run into this one, which has just been made.

        Args:
            state: Result of `state_dict`; every process needs it.

        Returns:
            Reasons why the run may not continue exactly, as lines to show.

        Raises:
            ValueError: If settings or data differ and `config.resume_changed` is not set, or the state does not fit.
        """
        run, progress = state['run'], self.progress
        changed = changed_settings(self.config, data_sizes(self.data, self.val), state)
        listed = '; '.join(f'{name}: {text}' for name, text in changed.items())
        if changed and not self.config.resume_changed:
            raise ValueError(f'the run was started with other settings: {listed}. Give it those, or --resume-changed.')
        if run['format'] != FORMAT:
            raise ValueError(
                f'the checkpoint has format {run["format"]}, expected {FORMAT}; resume it with the version that wrote '
                f'it.')
        self._load_weights(state, keep_hyperparameters=bool(changed))
        if self.step.scaler is not None and 'amp_scaler' in state:
            self.step.scaler.load_state_dict(state['amp_scaler'])
        progress.epoch, progress.update, progress.rows = run['epoch'], run['update'], list(run['rows'])
        progress.activations = dict(run['activations'])
        if self.schedule is not None:
            self.schedule.step_update(progress.update)
            self.schedule.step(progress.epoch)
        load_rank_state(run['ranks'], progress, self.task, self.processes)
        notes = [f'changed settings: {listed}'] if changed else []
        if len(run['ranks']) != self.processes.world_size:
            notes.append(
                f'number of processes: {len(run["ranks"])} before, {self.processes.world_size} now; the images are the '
                f'same, random numbers are not')
        versions = library_versions()
        differing = [f'{name} {old} -> {versions.get(name)}' for name, old in run['versions'].items()
                     if versions.get(name) != old]
        if differing:
            notes.append(f'versions have changed, results may differ in the last digits: {", ".join(differing)}')
        return notes

    def fresh_model(self) -> nn.Module:
        """A new copy of the network as it was before training, on the CPU; random numbers of the run stay the same."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            return self._new_model(copy.deepcopy(self._untrained))

    def description(self) -> str:
        """The run in one line."""
        config, data = self.config, self.data
        parameters = sum(p.numel() for p in self.task.trainable_module.parameters())
        attack = 'no attack' if config.task == 'plain' else f'PGD-{config.attack_steps} at eps {config.eps}'
        several = f', {self.processes.world_size} processes' if self.processes.is_distributed else ''
        return (
            f'{config.model} ({parameters:,} parameters) on {config.dataset}: {len(data.real):,} real images, '
            f'{data.synthetic_per_batch} of {config.batch_size} per batch synthetic, {self.epochs} epochs of '
            f'{self.updates_per_epoch} updates, {attack}, on {self.processes.device}{several}')

    def time_estimate(self, seconds_per_image: float) -> str:
        """Time of the rest of the run in words, from the time of one process for one training image."""
        return time_estimate(
            self.config, seconds_per_image, updates=self.epochs * self.updates_per_epoch - self.progress.update,
            world_size=self.processes.world_size, test_images=len(self.test) if self.test is not None else 0)

    def say(self, text: str) -> None:
        """Pass a line to the callbacks, which show it."""
        self._notify(lambda callback: callback.on_message(text))

    def _notify(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            call(callback)

    def _new_model(self, own: nn.Module | None) -> nn.Module:
        real = self.data.real
        return untrained_model(self.config, own, num_classes=real.num_classes, in_chans=real.image_shape[0])

    def _open_folder(self) -> None:
        """Make the folder, or bring it to the state of the checkpoint that the run resumes from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / 'args.yaml') as file:
            file.write(yaml.safe_dump(plain(self.config), sort_keys=False).encode())
        if self.progress.rows:
            write_summary(self.progress.rows, self.folder / 'summary.csv')
        else:
            (self.folder / 'summary.csv').unlink(missing_ok=True)
        self.files.tidy(self.progress.rows)

    def _show(self, step: int) -> None:
        """Pass the means of the epoch so far, of this process, to the callbacks."""
        progress = self.progress
        metrics = {
            'loss': float(progress.loss) / progress.images, 'robust': 100 * float(progress.correct) / progress.images,
            'images_per_second': progress.images / progress.seconds,
            'data_wait': 100 * progress.waited / progress.seconds}
        shape = shape_values(self.task.trainable_module)
        self._notify(lambda callback: callback.on_update(self.epoch, step, metrics, shape))
        if self._estimator is not None and self._estimator.look(progress.images):
            self.say(self.time_estimate(self._estimator.seconds_per_image or 0.))

    def _stop(self) -> None:
        """Save and end the run."""
        self.checkpoint()
        self.processes.all_reduce_max(0)  # no process leaves before the checkpoint is written
        raise RunStopped(
            f'{signal_name(self.stop.received)} at update {self.progress.update}, in epoch {self.epoch + 1} of '
            f'{self.epochs}; continue with the same command and --resume auto (it needs --experiment '
            f'{self.folder.name}).' if self.is_primary else '')

    def _resume(self, checkpoint: Path) -> None:
        # only the first node needs to see the file
        shared = self.processes.nodes > 1
        state = self.processes.broadcast_object(lambda: read_run(checkpoint)) if shared else read_run(checkpoint)
        notes = self.load_state_dict(state)
        self.notes += [
            f'resuming from {checkpoint}: epoch {self.epoch + 1}, update {self.progress.update}', *notes]

    def _load_weights(self, state: Mapping[str, Any], *, keep_hyperparameters: bool) -> None:
        """Load weights, average and optimizer, with the hyperparameters of this run if asked."""
        task, optimizer = self.task, self.optimizer
        groups = [dict(group) for group in optimizer.param_groups]
        try:
            task.load_checkpoint_state(state['state_dict'], state.get('task_state'))
            if task.has_ema():
                task.load_checkpoint_state(
                    state.get('state_dict_ema', state['state_dict']), state.get('task_state_ema'), ema=True)
            optimizer.load_state_dict(state['optimizer'])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f'the checkpoint does not fit the run: {str(error)[:200]}') from None
        if keep_hyperparameters:
            for group, asked in zip(optimizer.param_groups, groups, strict=True):
                group.update({name: asked[name] for name in HYPERPARAMETERS if name in asked})
