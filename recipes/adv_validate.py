"""Measure a checkpoint: clean, PGD and AutoAttack accuracy on the test split, and signs of a false number.

    python recipes/adv_validate.py --checkpoint DIR/model_best.pth.tar
    torchrun --nproc-per-node 2 recipes/adv_validate.py --checkpoint DIR/model_best.pth.tar --output FOLDER

The model, the data set and eps are those that the checkpoint was trained with unless flags say otherwise. With
`--output` an interrupted AutoAttack can be taken up again with `--resume`, by any number of processes.
"""
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed, nn

from timm_paf.attacks import check_state
from timm_paf.data import LabelledImages
from timm_paf.engine.cli import RunFailed, parse_config, run
from timm_paf.engine.compilation import compile_settings
from timm_paf.engine.config import DataConfig, ValidateConfig
from timm_paf.engine.distributed import Processes, peer_failure, shares_folder, start_processes
from timm_paf.engine.measurement import Parts, complete, open_parts, write
from timm_paf.engine.progress import AttackView
from timm_paf.engine.settings import build_model, check_writable, in_floats, open_dataset
from timm_paf.evaluation import evaluate_robustness
from timm_paf.models import load_weights, read_checkpoint


@dataclasses.dataclass
class Measurement:
    """A model and its images, ready to be measured."""
    config: ValidateConfig
    model: nn.Module
    processes: Processes
    data: LabelledImages
    weights: str
    parts: Parts


def prepare(argv: list[str] | None = None) -> Measurement:
    """Settings and a checkpoint to a measurement that is ready to start."""
    config = parse_config(ValidateConfig, argv, description=(__doc__ or '').splitlines()[0])
    if not config.checkpoint:
        raise ValueError('--checkpoint is missing; give the file to measure, such as DIR/model_best.pth.tar.')
    trained = read_checkpoint(config.checkpoint).get('args')
    config = with_training_settings(config, trained if isinstance(trained, dict) else {})
    processes = start_processes(config.device)
    with peer_failure(processes, 'nothing has been written.'):
        return open_all(config, processes)


def open_all(config: ValidateConfig, processes: Processes) -> Measurement:
    """Model, images and whatever else is measured, opened and checked."""
    device = processes.device
    processes.broadcast_object(lambda: check_paths(config))
    if config.state is not None and processes.nodes > 1 and not shares_folder(processes, Path(config.state)):
        raise ValueError(
            f'--output {config.output}: not all nodes see this folder, in which AutoAttack keeps what each of them '
            'finds; give one that they share, or leave it out.')
    data = getattr(open_dataset(config.dataset, config), config.split)
    if not isinstance(data, LabelledImages):
        raise ValueError(
            f'--split {config.split}: these images of {config.dataset} are read while training and are not in memory; '
            'expected test or val.')
    data = in_floats(data)
    model = build_model(
        config.model, num_classes=data.num_classes, in_chans=data.image_shape[0], **config.model_arguments())
    weights = load_weights(model, config.checkpoint, use_ema=config.use_ema)
    parts = open_parts(config, model.to(device), data, device=device, output=config.output)
    processes.broadcast_object(lambda: check_interrupted(config, model, data, device))
    if processes.is_distributed:
        distributed.barrier()  # all have looked at the paths before one writes
    return Measurement(config, model, processes, data, weights, parts)


def check_paths(config: ValidateConfig) -> None:
    """Raise FileExistsError or FileNotFoundError if results would go over others, or nowhere."""
    if config.output is not None and (Path(config.output) / 'report.json').exists():
        raise FileExistsError(f'{config.output} holds a report.json already; choose another --output.')
    if config.state is not None and config.state.exists() and not config.resume:
        raise FileExistsError(
            f'{config.state} holds an interrupted run; go on with it with --resume, or choose another --output.')
    if config.save_adv is not None:
        if Path(config.save_adv).exists():
            raise FileExistsError(f'--save-adv {config.save_adv} is there already; choose another name.')
        if not Path(config.save_adv).absolute().parent.is_dir():
            raise FileNotFoundError(f'--save-adv {config.save_adv}: there is no such folder.')
        check_writable(Path(config.save_adv).parent, '--save-adv')
    if config.output is not None:
        check_writable(Path(config.output), '--output')
    if config.robustbench_json:
        check_writable(Path(config.robustbench_json).parent, '--robustbench-json')


def check_interrupted(config: ValidateConfig, model: nn.Module, data: LabelledImages, device: torch.device) -> None:
    """Raise ValueError if --resume would go on with an AutoAttack of other weights, images or settings."""
    if config.state is None:
        return
    n, settings = config.n_examples, config.evaluation()
    threat = config.threat()
    check_state(
        config.state, model, data.images[:n], data.labels[:n], eps=threat.radius, norm=threat.norm,
        version=settings['autoattack_version'], batch_size=settings['batch_size'], seed=settings['seed'], device=device,
        compile=compile_settings(config))


def with_training_settings(config: ValidateConfig, trained: dict[str, Any]) -> ValidateConfig:
    """The settings with what the checkpoint knows filled in."""
    filled: dict[str, Any] = {}
    for name in ('model', 'dataset', 'eps'):
        if getattr(config, name) == '':
            if trained.get(name) is None:
                raise ValueError(f'checkpoint {config.checkpoint} does not say its {name}; give --{name}.')
            filled[name] = str(trained[name])
    if config.model == '':  # with the model come its arguments
        filled['model_kwargs'] = config.model_kwargs or tuple(trained.get('model_kwargs') or ())
        filled['act_sharing'] = config.act_sharing or trained.get('act_sharing')
    if config.norm == '':
        filled['norm'] = str(trained.get('norm') or 'linf')
    if config.dataset == '':  # with the data set come the folder and the split that it was read with
        for field in dataclasses.fields(DataConfig):
            if field.name in trained and field.name not in filled and getattr(config, field.name) == field.default:
                value = trained[field.name]
                filled[field.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **filled)


def measure(job: Measurement) -> None:
    """Measure and show the report; write it where it was asked for."""
    config, processes = job.config, job.processes
    console = Console(quiet=not processes.is_primary)
    console.print(
        f'{config.model}, {job.weights} of {config.checkpoint}, on {len(job.data)} {config.split} images of '
        f'{config.dataset}, {config.norm} eps {config.eps}, on {processes.device}', highlight=False, soft_wrap=True)
    attacked = config.evaluation()['autoattack_version'] is not None
    output = None if config.output is None else Path(config.output)
    if output is not None and processes.is_primary:
        output.mkdir(parents=True, exist_ok=True)
    kept = 'nothing is kept.' if config.state is None else f'go on with {config.state} with --resume.'
    try:
        with peer_failure(processes, kept), AttackView(console, f'{config.split} images') as view:
            report = evaluate_robustness(
                job.model, job.data.images, job.data.labels, **config.evaluation(), device=processes.device,
                progress=view.progress, state=config.state, rank=processes.rank, world_size=processes.world_size,
                save_adv=config.save_adv, save_verdicts=output / 'verdicts.csv' if output and attacked else None,
                model_name=config.model, dataset=config.dataset, split=config.split, checkpoint=Path(config.checkpoint),
                compile=compile_settings(config))
            report = complete(
                report, config, job.parts, job.model, job.data, processes=processes, progress=view.part)
    except ValueError as error:
        raise RunFailed(str(error)) from error
    finally:
        processes.close()
    if not processes.is_primary:
        return
    write(report, config, console)
    if config.state is not None:
        shutil.rmtree(config.state)
    for warning in report.measurements['autoattack'].details['warnings'] if attacked else ():
        console.print(f'note: {warning}', highlight=False, soft_wrap=True)


if __name__ == '__main__':
    sys.exit(run(prepare, measure))
