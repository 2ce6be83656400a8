"""A training run as a loop: batches, updates, validation, checkpoints, and the final measurement."""
import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from torch import Tensor

from timm_paf._files import write_text
from timm_paf.activations import activation_summary
from timm_paf.attacks import release_graphs
from timm_paf.data import Batch, DataChanged, Prefetched
from timm_paf.engine.checkpoint_files import best_epoch, write_summary
from timm_paf.engine.cli import RunFailed, RunStopped
from timm_paf.engine.components import Run
from timm_paf.engine.data import source_lines
from timm_paf.engine.distributed import peer_failure, signal_name
from timm_paf.engine.execution import describe_execution
from timm_paf.engine.measurement import measure_attacks, with_examples
from timm_paf.engine.page import training_page
from timm_paf.engine.progress import AttackView, shape_values
from timm_paf.engine.rehearsal import rehearse_run
from timm_paf.engine.step import batches_from
from timm_paf.engine.train_config import INCIDENTAL
from timm_paf.engine.validation import selection, selection_lines, validate
from timm_paf.evaluation import RobustnessReport
from timm_paf.models import load_weights

__all__ = ['Trainer']


class Trainer(Run):
    """A training run, opened and checked when it is made; it writes nothing before training starts.

    `fit` is a short loop over public methods, which you can also write yourself, as recipes/adv_train.py does. A
    subclass can override `train_step`, `batches`, `validate`, `checkpoint` and `evaluate`.

    Args:
        config: Settings. `Trainer.config` has the resolved ones: device, learning rate and folder.
        model: Own network for images in [0, 1]; it is trained in place, and `config.model` is only a name.
        train: Own training images: arrays (images, labels), an `ImageSource`, or a map-style
            `torch.utils.data.Dataset` of pairs (image, label). `config.dataset` is then only a name.
        val: Own validation images; without them, `config.val_size` images of `train` are held out.
        test: Own test images; `evaluate` needs them if `train` is given.
        callbacks: Watch the run, in addition to the terminal and the loggers of the settings.
        console: Where to show progress; `Console(quiet=True)` shows nothing.

    Raises:
        RunFinished: If `config.resume` names a run that is finished.
        ValueError: If settings, data and model do not fit together.
        OSError: If files are missing, or the folder cannot be used.
    """

    _running = _rehearsed = False
    _saved = 0.  # time of the last checkpoint, or start of the epoch
    _stream: Prefetched | None = None

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

    def rehearse(self) -> None:
        """Try on a few images what the run needs later, once; `running` does it, and the commands do it before that.

        Raises:
            ValueError: If something cannot work; the message says what, and what to do.
        """
        if not self._rehearsed:
            own = type(self).train_step is not Trainer.train_step
            with peer_failure(self.processes, 'nothing has been written.'):
                self.processes.broadcast_object(lambda: rehearse_run(self, training=not own))
            self._rehearsed = True

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Context of a training loop: opens folder and callbacks, saves on a signal, leaves the process group."""
        self.rehearse()
        advice = f'the checkpoints in {self.folder} are kept; resume with --resume auto.'
        failure: BaseException | None = None
        with peer_failure(self.processes, advice), self.stop:
            try:
                if self.is_primary:
                    self._open_folder()
                self._running = True
                for line in (*self.notes, *source_lines(self.data), self.description(), describe_execution(self)):
                    self.say(line)
                self._notify(lambda callback: callback.on_start(self.progress.rows))
                yield
            except RunStopped as stopped:
                failure = stopped
                self.checkpoint()
                self.processes.all_reduce_max(0)  # no process leaves before the checkpoint is written
                raise RunStopped(
                    f'{signal_name(self.stop.received)} at update {self.progress.update}, in epoch {self.epoch + 1} of '
                    f'{self.epochs}; resume with the same command and --resume auto (it needs --experiment '
                    f'{self.folder.name}).' if self.is_primary else '') from None
            except DataChanged as error:
                failure = error
                raise RunFailed(
                    f'{error}; the checkpoints in {self.folder} are from before epoch {self.epoch + 1}.') from error
            except BaseException as error:
                failure = error
                raise
            finally:
                self._running = False
                for module in self.task.modules():  # the network, and its average if there is one
                    release_graphs(module)
                if self._stream is not None:
                    self._stream.close()  # an error in the loop leaves the iterator open
                self._notify(lambda callback: callback.on_end(failure))
                self.processes.close()  # torch may abort a process that ends inside the group

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
        self.alphas.start()
        self.task.train()
        with Prefetched(
            batches_from(self.data, progress.update, end - progress.update), device=self.processes.device,
            threaded=self.config.prefetch,
        ) as self._stream:
            for update, batch in enumerate(self._stream, progress.update + 1):
                yield batch
                if progress.update < update:
                    raise RuntimeError('each batch needs a call of train_step, which has to call record.')
                if update == end:
                    progress.activations = activation_summary(self.task.trainable_module)
                progress.seconds = time.monotonic() - started
                progress.waited = waited + self._stream.waited
                self.maybe_log()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights once: attack, loss, backward pass, optimizer, average, schedule.

        Returns:
            Means over this process's share `batch` as tensors on the device: 'loss', and 'robust', the accuracy in %
            under the training attack.
        """
        loss, correct = self.step(batch, self.progress.update)
        return self.record(batch, loss, correct)

    def record(self, batch: Batch, loss: Tensor, correct: Tensor) -> dict[str, Tensor]:
        """Count an update. A `train_step` that does not call the inherited one returns the result of this method.

        Args:
            batch: The images.
            loss: Sum of their losses, on the device.
            correct: Number of images classified correctly, on the device.
        """
        self.alphas.record(self.progress.update)
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
        stopped, due_anywhere, bad = self.processes.all_reduce_max(self.stop.received, int(due), int(progress.bad))
        if line := self.alphas.message(config.alpha_grad_clip):
            self.say(line)
        if bad >= 0:
            raise RunFailed(
                f'the loss became NaN or infinite at step {bad % self.updates_per_epoch + 1} of epoch '
                f'{self.epoch + 1}; the checkpoints in {self.folder} are from before it. Try a smaller --lr, or '
                f'--warmup-epochs.')
        metrics, shape = progress.means(self.processes), shape_values(self.task.trainable_module)
        self._notify(lambda callback: callback.on_update(self.epoch, step, metrics, shape))
        if stopped:
            self.stop.received = stopped
            raise RunStopped
        if due_anywhere and not last:
            self.checkpoint()
            self._saved = time.monotonic()

    def validate(self) -> dict[str, float]:
        """Accuracies on the validation split in %: 'clean', 'robust' (PGD); with EMA also 'clean_raw', 'robust_raw'."""
        return validate(
            self.task, self.val, self.config, self.processes, precision=self.step.precision,
            stop_requested=lambda: bool(self.stop.received))

    def end_epoch(self, validation: Mapping[str, float]) -> dict[str, Any]:
        """Finish the epoch in progress: move the schedule, and return the row of summary.csv.

        Args:
            validation: Result of `validate`; empty if the epoch has no validation.
        """
        progress = self.progress
        measured: dict[str, float | None] = {'clean': None, 'robust': None, **validation}
        row = {
            'epoch': self.epoch, **{f'train_{name}': value for name, value in progress.means(self.processes).items()},
            **{f'eval_{name}': value for name, value in measured.items()},
            **{f'act_{name}': value for name, value in progress.activations.items()},
            'lr': self.optimizer.param_groups[0]['lr']}
        progress.rows.append(row)
        progress.next_epoch()
        if self.schedule is not None:
            self.schedule.step(self.epoch)
        return row

    def checkpoint(self) -> None:
        """Write a checkpoint, in all processes; after the end of an epoch also the best checkpoints and summary.csv.

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
            RunStopped: After SIGTERM or SIGINT; the measurement resumes with --resume auto after its last batch.
        """
        if self.test is None:
            raise ValueError('there are no test images; pass them as Trainer(..., test=...).')
        config, rows, device, folder = self.config, self.progress.rows, self.processes.device, self.folder
        selected = best_epoch(rows, self.files.metric) is not None and self.files.best.exists()
        writes, state = selected and self.is_primary, folder / 'autoattack'
        found = selection(rows, metric=config.eval_metric, averaged=config.model_ema) if selected else {}
        if writes:
            write_text(json.dumps(found, indent=2) + '\n', folder / 'selection.json')
            attack = f'under PGD-{config.validation_attack(0).steps}'
            for line in selection_lines(found, 'clean' if config.eval_metric == 'clean' else attack):
                self.say(line)
        model = self.fresh_model()
        if selected:
            load_weights(model, self.files.best)
        else:
            weights = self.task.get_checkpoint_state(ema=self.task.has_ema())
            model.load_state_dict(weights['state_dict_ema' if self.task.has_ema() else 'state_dict'])
        with self.stop, AttackView(self.console, 'the test split') as view:
            def progress(*done: Any) -> None:
                if self.stop.received:
                    raise RunStopped(
                        f'{signal_name(self.stop.received)} while measuring; the training is finished. Repeat the '
                        f'measurement with --resume auto.')
                view.progress(*done)

            try:
                report = measure_attacks(
                    model.to(device), self.test, config, split='test', device=device, progress=progress,
                    checkpoint=self.files.best if selected else None,
                    state=state if writes else None)
            except ValueError as error:
                raise RunFailed(f'{error} The checkpoints of the run are kept.') from error
            report = with_examples(report, model, self.test, config, device)
        if writes:
            write_text(training_page(
                report, rows, settings=config.to_dict(), selection=found, before=self.fresh_model(), after=model),
                folder / 'report.html')
            report.save(folder / 'report.json')  # the last file: it marks the run as finished
            shutil.rmtree(state, ignore_errors=True)
        self.console.print(report.table())
        if writes:
            self.say(f'results in {folder}; open report.html in a browser')
        return report

    def _open_folder(self) -> None:
        """Make the folder, or bring it to the state of the checkpoint that the run resumes from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, settings = self.folder / 'args.yaml', self.config.to_dict()
        if self.config.resume_changed and path.exists():
            before = yaml.safe_load(path.read_text()) or {}
            if any(before.get(name) != value for name, value in settings.items() if name not in INCIDENTAL):
                shutil.rmtree(self.folder / 'autoattack', ignore_errors=True)  # of the settings before
        write_text(yaml.safe_dump(settings, sort_keys=False), path)
        if self.progress.rows:
            write_summary(self.progress.rows, self.folder / 'summary.csv')
        else:
            (self.folder / 'summary.csv').unlink(missing_ok=True)
        self.files.tidy(self.progress.rows)
