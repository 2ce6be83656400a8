"""Measurement of a checkpoint: accuracies under attack, trust checks, curves, corruptions, and the files of results."""
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import distributed, nn

from timm_paf._distributed import Processes
from timm_paf._files import file_sha256, write_text
from timm_paf.attacks import PGD, check_images
from timm_paf.attacks.balls import check_radius
from timm_paf.data import EvaluationImages, LabelledImages, match_classes
from timm_paf.engine.checkpoint_files import check_writable, existing_folder
from timm_paf.engine.classes import by_number, label_names, names_difference
from timm_paf.engine.cli import RunFailed, replace_unencodable
from timm_paf.engine.data import Images, as_source, matched, open_dataset
from timm_paf.engine.distributed import peer_failure, start_processes
from timm_paf.engine.execution import compile_settings, convolution_precision
from timm_paf.engine.model import build_model
from timm_paf.engine.normalization import check_normalization, load_network
from timm_paf.engine.progress import AttackView, say
from timm_paf.engine.rehearsal import rehearse_measurement
from timm_paf.engine.shared_config import DataConfig
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.validate_config import REQUIRED_ENTRY, ValidateConfig
from timm_paf.evaluation import (
    Accuracy,
    CorruptionArchive,
    RobustnessReport,
    adversarial_examples,
    check_state,
    check_trust,
    corruption_accuracy,
    curve_radius,
    evaluate_robustness,
    robustbench_info,
    robustbench_obstacles,
    robustness_curve,
)
from timm_paf.models import read_checkpoint

__all__ = ['Measurement', 'measure', 'measure_attacks', 'with_examples']

N_NORMALIZATION = 256  # images on which a guessed normalisation is compared with others


def measure(config: ValidateConfig, **own: Any) -> RobustnessReport:
    """Measure a checkpoint, print the tables and write the files that the settings name; `own` as in `Measurement`."""
    measurement = Measurement(config, **own)
    report = measurement.run()
    measurement.write(report)
    return report


class Measurement:
    """A checkpoint and its images, opened and checked before anything is measured or written.

    Args:
        config: Settings; empty ones are filled from the checkpoint. `Measurement.config` has the result.
        model: Own network, in place of `config.model`; the weights of the checkpoint are loaded into it.
        data: Own images, in place of `config.dataset`: arrays (images, labels), an `ImageSource` or a map-style
            `torch.utils.data.Dataset`.
        console: Where to show progress and tables.

    Raises:
        ValueError: If checkpoint, model, images or settings do not fit together.
        OSError: If a file is missing, or would be overwritten.
    """

    def __init__(
            self, config: ValidateConfig, *, model: nn.Module | None = None, data: Images | None = None,
            console: Console | None = None,
    ) -> None:
        if not config.checkpoint:
            raise ValueError('--checkpoint is missing; give the file to measure, such as DIR/model_best.pth.tar.')
        compile_settings(config)
        if model is not None and not config.model:
            config = dataclasses.replace(config, model=type(model).__name__)
        if data is not None and not config.dataset:
            config = dataclasses.replace(config, dataset='own data')
        trained = read_checkpoint(config.checkpoint).get('args')
        self.config = config = with_training_settings(config, trained if isinstance(trained, dict) else {})
        self.processes = processes = start_processes(config.device)
        replace_unencodable()
        self.console = (console or Console()) if processes.is_primary else Console(quiet=True)
        with peer_failure(processes, 'nothing has been written.'):
            processes.broadcast_object(lambda: check_paths(config))
            if config.state is not None and not shares_folder(processes, config.state):
                raise ValueError(
                    f'--output {config.output}: not all nodes see this folder, which holds the state of the run; '
                    'give one that they share, or leave it out.')
            names = config.class_names
            if not isinstance(trained, dict) or 'class_names' not in trained:
                names = names or label_names(model)
            self.config = config = dataclasses.replace(config, class_names=names)
            with processes.patient() as patient, patient.rank_zero_first():  # reading may take long
                source = getattr(open_dataset(config.dataset, config, console=self.console), config.split) if (
                    data is None) else as_source(data, num_classes=config.num_classes or len(names))
            if hasattr(source, 'dataset') and not hasattr(source, 'labels'):
                raise ValueError(
                    f'--split {config.split}: these images of {config.dataset} are a stream, which is read while '
                    f'training; expected test or val.')
            self.data = matched(
                source if isinstance(source, EvaluationImages) else EvaluationImages(source), names,
                num_classes=config.num_classes)
            self.model, self.weights, note, warning, guessed = load_network(
                model if model is not None else build_model(
                    config.model, num_classes=self.data.num_classes, in_chans=self.data.image_shape[0],
                    **config.model_arguments()),
                config.checkpoint, config, name=config.model, use_ema=config.use_ema)
            self.model.to(processes.device)
            x, y = self.data.images, self.data.labels
            check_radius(config.threat().radius, config.threat().norm, x[:1])
            check_images(self.model, x, y, device=processes.device)
            if guessed:
                other = check_normalization(
                    self.model, x[:N_NORMALIZATION], y[:N_NORMALIZATION], batch_size=config.eval_batch_size,
                    device=processes.device)
                warning = ' '.join(filter(None, (warning, other)))
            self.note, self.warnings = note, (warning,) if warning else ()
            rehearse_measurement(self.model, self.data, config, processes.device)
            radii = [curve_radius(text, label='--eps-curve', norm=config.threat().norm) for text in config.radii()]
            if len(set(radii)) < len(radii):
                raise ValueError(f'--eps-curve = {",".join(config.radii())}: expected each radius once.')
            self.corruptions = None if config.corruptions is None else open_corruptions(
                config.corruptions, self.data, names)
            self.notes = by_number(
                names, {f'{config.split} images': self.data, 'corrupted images': self.corruptions},
                whose='the checkpoint')
            self.trained_clean = clean_accuracy_of_run(config)
            processes.broadcast_object(self._check_state)
            if processes.is_distributed:
                distributed.barrier()  # every process checks the paths before one writes

    def run(self) -> RobustnessReport:
        """Measure what the settings name; processes share the work, and the first one has the complete report.

        Raises:
            RunFailed: If the model cannot be measured.
        """
        config, processes = self.config, self.processes
        say(self.console, (
            f'{config.model}, {self.weights} of {config.checkpoint}, on {len(self.data)} {config.split} images of '
            f'{config.dataset}, {config.norm} eps {config.eps}, on {processes.device}, convolutions in '
            f'{convolution_precision(processes.device)}'))
        for line in filter(None, (self.note, *self.notes)):
            say(self.console, line)
        for warning in self.warnings:
            say(self.console, f'warning: {warning}', style='bold red')
        verdicts = None
        if config.output is not None:
            if processes.is_primary:
                Path(config.output).mkdir(parents=True, exist_ok=True)
            attacked = config.autoattack_arguments()['autoattack_version'] is not None
            verdicts = Path(config.output) / 'verdicts.csv' if attacked else None
        advice = 'nothing is kept.' if config.state is None else f'{config.state} is kept; resume with --resume.'
        try:
            with peer_failure(processes, advice), AttackView(self.console, f'{config.split} images') as view:
                report = measure_attacks(
                    self.model, self.data, config, split=config.split, device=processes.device, progress=view.progress,
                    checkpoint=Path(config.checkpoint), state=config.state, rank=processes.rank,
                    world_size=processes.world_size, save_adv=config.save_adv, save_verdicts=verdicts)
                report = dataclasses.replace(report, warnings=(*report.warnings, *self.warnings))
                return self._complete(report, view)
        except ValueError as error:
            raise RunFailed(str(error)) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(advice) from None
        finally:
            processes.close()

    def _complete(self, report: RobustnessReport, view: AttackView) -> RobustnessReport:
        """Add curve, corruptions, trust checks and examples to the report."""
        config, processes, model = self.config, self.processes, self.model
        x, y, threat = self.data.images, self.data.labels, config.threat()
        alone: dict[str, Any] = dict(batch_size=config.eval_batch_size, device=processes.device)
        shared = dict(alone, rank=processes.rank, world_size=processes.world_size)
        added: dict[str, Any] = {}
        if config.radii():
            view.part('curve over eps', 0, 1)
            added['curve'] = robustness_curve(
                model, x[:config.n_curve], y[:config.n_curve], eps=config.radii(), norm=threat.norm,
                steps=config.pgd_steps, seed=config.seed, capture=config.capture, **shared)
        if self.corruptions is not None:
            added['corruptions'] = corruption_accuracy(model, self.corruptions, progress=view.part, **shared)
        processes.close()  # the rest is short, and the first process does it
        if not processes.is_primary:
            return report
        if config.trust:
            added['trust'] = check_trust(
                model, x, y, threat=threat, n_trust=config.n_trust, clean=report.measurements['clean'].accuracy,
                trained_clean=self.trained_clean, seed=config.seed, capture=config.capture, progress=view.part, **alone)
        if config.writes_page:
            report = with_examples(report, model, self.data, config, processes.device)
        return dataclasses.replace(report, **added)

    def write(self, report: RobustnessReport) -> None:
        """Print the tables and write the files that the settings name; the first process only."""
        config, console = self.config, self.console
        if not self.processes.is_primary:
            return
        if config.output is not None:
            folder = Path(config.output)
            if config.writes_page:
                report.save_page(folder / 'report.html')
            report.save(folder / 'report.json')  # the last file: it marks the measurement as complete
        console.print(report.table())
        if (trust := report.trust_table()) is not None:
            console.print(trust)
        lines = []
        if config.robustbench_json:
            names = (*REQUIRED_ENTRY, 'architecture', 'reported', 'footnote')
            entry = {name: getattr(config, f'robustbench_{name}') for name in names}
            text = json.dumps(robustbench_info(report, **entry), indent=2, ensure_ascii=False) + '\n'
            write_text(text, Path(config.robustbench_json))
            lines.append(f'RobustBench entry in {config.robustbench_json}')
            lines += [f'  the leaderboard would not accept it: {fault}' for fault in robustbench_obstacles(report)]
        if config.state is not None:
            shutil.rmtree(config.state, ignore_errors=True)
        if 'autoattack' in report.measurements:
            lines += [f'note: {warning}' for warning in report.measurements['autoattack'].details['warnings']]
        for line in lines:
            say(console, line)

    def _check_state(self) -> None:
        """Raise ValueError if --resume finds a measurement with other weights, images or settings."""
        config = self.config
        if config.resume and config.state is not None:
            check_state(
                config.state, self.model, self.data.images, self.data.labels, device=self.processes.device,
                compile=compile_settings(config), **config.evaluation())


def with_training_settings(config: ValidateConfig, trained: dict[str, Any]) -> ValidateConfig:
    """The settings, with empty ones filled from those of the training run; ValueError if one is in neither."""
    filled: dict[str, Any] = {}
    for name in ('model', 'dataset', 'eps'):
        if getattr(config, name) == '':
            if trained.get(name) is None:
                raise ValueError(f'checkpoint {config.checkpoint} does not contain its {name}; give --{name}.')
            filled[name] = str(trained[name])
    if config.model == '':  # the arguments belong to the model
        filled['model_kwargs'] = config.model_kwargs or tuple(trained.get('model_kwargs') or ())
        filled['act_sharing'] = config.act_sharing or trained.get('act_sharing')
    norm = str(trained.get('norm') or 'linf')
    filled['norm'] = config.norm or norm
    if 'eps' in filled and filled['norm'] != norm:
        raise ValueError(
            f'--norm {config.norm}: {config.checkpoint} was trained in {norm}; give --eps for {config.norm}.')
    filled['class_names'] = names = tuple(trained.get('class_names') or config.class_names)
    if config.class_names and (difference := names_difference(names, config.class_names)):
        raise ValueError(f'--class-names: {difference}, compared with {config.checkpoint}; leave out --class-names.')
    if config.dataset == '':  # folder and splits belong to the data set
        filled |= {
            field.name: trained[field.name] for field in dataclasses.fields(DataConfig)
            if field.name in trained.keys() - filled.keys() and getattr(config, field.name) == field.default}
    return dataclasses.replace(config, **filled)


def check_paths(config: ValidateConfig) -> None:
    """Raise OSError if results would overwrite others or cannot be written, ValueError if settings contradict."""
    output = None if config.output is None else Path(config.output)
    if config.html and output is None:
        raise ValueError('--html writes next to report.json: give a folder with --output.')
    if output is not None:
        if (output / 'report.json').exists():
            raise FileExistsError(f'{output} holds a report.json already; choose another --output.')
        check_writable(output, '--output')
    interrupted = config.state is not None and config.state.exists()
    if interrupted and not config.resume:
        raise FileExistsError(
            f'{config.state} holds an interrupted run; resume it with --resume, or choose another --output.')
    for flag, file in (('--save-adv', config.save_adv), ('--robustbench-json', config.robustbench_json),
                       ('--output', output / 'report.html' if output is not None and config.writes_page else None)):
        if file and Path(file).exists() and not (interrupted and flag == '--save-adv'):  # that run wrote it
            raise FileExistsError(f'{flag}: {file} exists already; choose another name, or remove it.')
        if file and flag != '--output':
            if not Path(file).absolute().parent.is_dir():
                raise FileNotFoundError(f'{flag} {file}: there is no such folder.')
            check_writable(Path(file).parent, flag)
    if config.robustbench_json and config.autoattack_arguments()['autoattack_version'] is None:
        raise ValueError('--robustbench-json needs AutoAttack; expected --autoattack standard.')


def shares_folder(processes: Processes, folder: Path) -> bool:
    """Whether all processes see a file that process 0 writes into the folder."""
    if processes.nodes == 1:
        return True
    found = existing_folder(folder)
    with ExitStack() as stack:
        name = processes.broadcast_object(
            lambda: Path(stack.enter_context(tempfile.NamedTemporaryFile(dir=found)).name).name)
        return not processes.all_reduce_max(not (found / name).exists())[0]


def open_corruptions(folder: str, data: EvaluationImages, names: Sequence[str]) -> CorruptionArchive:
    """Open the corrupted images, with labels by the class names; ValueError if shape or labels do not fit the data."""
    archive = CorruptionArchive(folder)
    if archive.image_shape != tuple(data.image_shape):
        raise ValueError(
            f'--corruptions {folder} holds images {archive.image_shape}; the model takes {tuple(data.image_shape)} '
            '(channels, height, width).')
    labels = torch.from_numpy(np.array(archive.labels, np.int64))
    own = LabelledImages(
        torch.zeros(len(labels), 1, 1, 1), labels, len(archive.class_names or ()) or data.num_classes,
        f'--corruptions {folder}', archive.class_names)
    own = match_classes(own, names or None, num_classes=data.num_classes)
    archive.labels, archive.class_names = own.labels.numpy(), own.class_names
    return archive


def clean_accuracy_of_run(config: ValidateConfig) -> Accuracy | None:
    """Clean accuracy in the training run's report.json, if it is about this checkpoint and the same images."""
    checkpoint = Path(config.checkpoint)
    try:
        report = json.loads((checkpoint.parent / 'report.json').read_text())
        same = all(report[name] == getattr(config, name) for name in ('dataset', 'split', 'model'))
        if not same or report['checkpoint_sha256'] != file_sha256(checkpoint):
            return None
        return Accuracy(report['clean']['correct'], report['clean']['total'])
    except (OSError, ValueError, KeyError, TypeError):  # no report.json, or that of another program
        return None


def measure_attacks(
        model: nn.Module, data: EvaluationImages, config: TrainConfig | ValidateConfig, **more: Any,
) -> RobustnessReport:
    """Clean, PGD and AutoAttack accuracy on float32 images; `more` are further arguments of `evaluate_robustness`."""
    return evaluate_robustness(
        model, data.images, data.labels, **config.evaluation(), model_name=config.model, dataset=config.dataset,
        class_names=config.class_names, compile=compile_settings(config), **more)


def with_examples(
        report: RobustnessReport, model: nn.Module, data: EvaluationImages, config: TrainConfig | ValidateConfig,
        device: torch.device,
) -> RobustnessReport:
    """The report with examples of images that PGD attacks."""
    threat = config.threat()
    return dataclasses.replace(report, examples=adversarial_examples(
        model, data.images, data.labels, title=f'PGD-{config.pgd_steps} ({threat})', device=device,
        n=8, attack=PGD(
            eps=threat.radius, steps=config.pgd_steps, norm=threat.norm, seed=config.seed, capture=config.capture),
        seeds=torch.arange(len(data))))
