"""Measure a checkpoint: clean, PGD and AutoAttack accuracy on the test split, and signs of a false number.

    python recipes/adv_validate.py --checkpoint DIR/model_best.pth.tar

The model, the data set and eps are those that the checkpoint was trained with unless flags say otherwise.
"""
import dataclasses
import sys
from pathlib import Path
from typing import Any, Optional

import torch
from _cli import RunFailed, parse_config, run, setting
from _evaluation import Parts, ReportConfig, complete, open_parts, write
from _settings import DataConfig, EvaluationConfig, build_model, choose_device, in_floats, open_dataset
from rich.console import Console
from torch import nn

from timm_paf.data import LabelledImages
from timm_paf.evaluation import evaluate_robustness
from timm_paf.models import load_weights, read_checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateConfig(DataConfig, EvaluationConfig, ReportConfig):
    """Settings of a measurement; unset ones are taken from the checkpoint."""
    checkpoint: str = setting('', 'the file to measure (required)')
    model: str = setting('', "a name of timm's registry")
    dataset: str = setting('', 'data set, as adv_train.py names it')
    split: str = setting('test', 'which part of it', choices=('test', 'val', 'train'))
    eps: str = setting('', 'radius of the Linf ball: 8/255, or a number')
    use_ema: Optional[bool] = setting(None, 'averaged or raw weights; unset: averaged if the file has them')
    output: Optional[str] = setting(None, 'folder for report.json and report.html; unset: only the tables')

    def __post_init__(self) -> None:
        if self.dataset:
            DataConfig.__post_init__(self)
        if self.eps:
            EvaluationConfig.__post_init__(self)
        ReportConfig.__post_init__(self)


@dataclasses.dataclass
class Measurement:
    """A model and its images, ready to be measured."""
    config: ValidateConfig
    model: nn.Module
    device: torch.device
    data: LabelledImages
    weights: str
    parts: Parts


def prepare(argv: Optional[list[str]] = None) -> Measurement:
    """Settings and a checkpoint to a measurement that is ready to start."""
    config = parse_config(ValidateConfig, argv, description=(__doc__ or '').splitlines()[0])
    if not config.checkpoint:
        raise ValueError('--checkpoint is missing; give the file to measure, such as DIR/model_best.pth.tar.')
    trained = read_checkpoint(config.checkpoint).get('args')
    config = with_training_settings(config, trained if isinstance(trained, dict) else {})
    device = choose_device(config.device)
    if config.output is not None and (Path(config.output) / 'report.json').exists():
        raise FileExistsError(f'{config.output} holds a report.json already; choose another --output.')
    data = getattr(open_dataset(config.dataset, config), config.split)
    if not isinstance(data, LabelledImages):
        raise ValueError(
            f'--split {config.split}: these images of {config.dataset} are read while training and are not in memory; '
            'expected test or val.')
    data = in_floats(data)
    model = build_model(config.model, num_classes=data.num_classes, in_chans=data.image_shape[0])
    weights = load_weights(model, config.checkpoint, use_ema=config.use_ema)
    parts = open_parts(config, model.to(device), data, device=device, output=config.output)
    return Measurement(config, model, device, data, weights, parts)


def with_training_settings(config: ValidateConfig, trained: dict[str, Any]) -> ValidateConfig:
    """The settings with what the checkpoint knows filled in."""
    filled: dict[str, Any] = {}
    for name in ('model', 'dataset', 'eps'):
        if getattr(config, name) == '':
            if trained.get(name) is None:
                raise ValueError(f'checkpoint {config.checkpoint} does not say its {name}; give --{name}.')
            filled[name] = str(trained[name])
    if config.dataset == '':  # with the data set come the folder and the split that it was read with
        for field in dataclasses.fields(DataConfig):
            if field.name in trained and field.name not in filled and getattr(config, field.name) == field.default:
                value = trained[field.name]
                filled[field.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **filled)


def measure(job: Measurement) -> None:
    """Measure and show the report; write it where it was asked for."""
    config, console = job.config, Console()
    console.print(
        f'{config.model}, {job.weights} of {config.checkpoint}, on {len(job.data)} {config.split} images of '
        f'{config.dataset}, eps {config.eps}, on {job.device}', highlight=False, soft_wrap=True)
    try:
        with console.status('measuring') as status:
            def progress(name: str, done: int, total: int) -> None:
                status.update(f'{name} {done}/{total}')

            report = evaluate_robustness(
                job.model, job.data.images, job.data.labels, **config.evaluation(), device=job.device,
                progress=lambda name, done, total: progress(f'AutoAttack: {name}', done, total),
                model_name=config.model, dataset=config.dataset, split=config.split, checkpoint=Path(config.checkpoint))
            report = complete(
                report, config, job.parts, job.model, job.data, device=job.device, progress=progress)
    except ValueError as error:
        raise RunFailed(str(error)) from error
    write(report, config, console)


if __name__ == '__main__':
    sys.exit(run(prepare, measure))
