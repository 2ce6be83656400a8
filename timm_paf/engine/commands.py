"""The commands `train` and `validate`: command line to settings to a run, with exit statuses."""
import time
from collections.abc import Sequence
from typing import Any

import yaml

from timm_paf.activations import paf_parameters
from timm_paf.engine.cli import parse_config, run
from timm_paf.engine.data import source_lines
from timm_paf.engine.execution import describe_execution
from timm_paf.engine.measurement import Measurement
from timm_paf.engine.progress import memory
from timm_paf.engine.resume import RunFinished, settings_of_run
from timm_paf.engine.step import batches_from
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.trainer import Trainer
from timm_paf.engine.validate_config import ValidateConfig

__all__ = [
    'dry_run', 'open_run', 'parse_train_config', 'parse_validate_config', 'seconds_per_image', 'train', 'validate']

WARM, MEASURED = 1, 3


def parse_train_config(argv: Sequence[str] | None = None, *, description: str = 'Adversarial training.') -> TrainConfig:
    """Settings of a training run: flags override the YAML file of -c, which overrides the defaults.

    Without -c the embedded digits take the file digits.yaml; other data sets take the defaults.

    Args:
        argv: Arguments; those of the process if None.
        description: First line of --help.

    Raises:
        ValueError: If a flag, key or value is not as expected.
    """
    def default(given: dict[str, Any]) -> str | dict[str, Any] | None:
        return settings_of_run(given) or ('digits' if given.get('dataset', 'digits') == 'digits' else None)

    return parse_config(TrainConfig, argv, description=description, default=default)


def parse_validate_config(
        argv: Sequence[str] | None = None, *, description: str = 'Measurement of a checkpoint.') -> ValidateConfig:
    """Settings of a measurement; see `parse_train_config`."""
    return parse_config(ValidateConfig, argv, description=description)


def open_run(config: TrainConfig) -> Trainer | None:
    """The run of the settings, after a rehearsal; None, with a message, if it is finished already.

    Raises:
        ValueError: If settings, data and model do not fit together.
        OSError: If files are missing, or the folder cannot be used.
    """
    try:
        trainer = Trainer(config)
        trainer.rehearse()
        return trainer
    except RunFinished as finished:
        if str(finished):  # of several processes one has the message
            print(finished)
        return None


def train(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit status (0, 1, 2, 3 or 130, see docs/recipes/training.md)."""
    def execute(trainer: Trainer | None) -> None:
        if trainer is not None and trainer.config.dry_run:
            dry_run(trainer)
        elif trainer is not None:
            trainer.fit()
            if trainer.is_primary:
                trainer.evaluate()

    return run(lambda: open_run(parse_train_config(argv)), execute)


def validate(argv: Sequence[str] | None = None) -> int:
    """Measure a checkpoint as the command line says; returns the exit status."""
    return run(
        lambda: Measurement(parse_validate_config(argv)), lambda measurement: measurement.write(measurement.run()))


def dry_run(trainer: Trainer) -> None:
    """Show settings and sizes of a run, and estimate time and memory from a few updates; writes nothing.

    The updates change the weights of this trainer.
    """
    config, batches, model = trainer.config, trainer.data, trainer.task.trainable_module
    trained, pafs = sum(p.numel() for p in model.parameters() if p.requires_grad), paf_parameters(model)
    values = [
        f'  {name}: {", ".join(f"{value:g}" for value in p.detach().flatten().tolist()[:4])}'
        f'{"" if p.requires_grad else " (fixed)"}' for name, p in pafs.items()]
    for line in (
            yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(), '', *source_lines(batches),
            trainer.description(), describe_execution(trainer),
            f'{trained:,} trained parameters, {sum(p.numel() for p in pafs.values()):,} parameters of activations',
            *(values if len(values) <= 8 else ()),
            f'{trainer.updates_per_epoch * trainer.epochs:,} updates of {config.batch_size} images; a pass over the '
            f'real images has {len(batches)} updates of {batches.real_per_batch} real and '
            f'{batches.synthetic_per_batch} synthetic images; {len(trainer.val):,} images to validate on, '
            f'{len(trainer.test or ()):,} to test on'):
        trainer.say(line)
    trainer.say(trainer.time_estimate(seconds_per_image(trainer)))
    trainer.say(f'memory: {memory(trainer.processes.device)}')
    trainer.processes.close()


def seconds_per_image(trainer: Trainer) -> float:
    """Time of training on one image, from a few updates, which change the weights of this trainer."""
    times, images = [], 0
    trainer.task.train()
    for number, batch in enumerate(batches_from(trainer.data, 0, WARM + MEASURED)):
        loss, _ = trainer.step(batch, number)
        float(loss)  # waits for the device
        times.append(time.perf_counter())
        images += len(batch) if number >= WARM else 0
    return (times[-1] - times[WARM - 1]) / images
