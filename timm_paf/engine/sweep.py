"""A sweep: a grid of activations and settings, from a file to cells, each of them an ordinary training run."""
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.layers import get_act_layer

from timm_paf.activations import ACTIVATIONS
from timm_paf.engine.checkpoint import BEFORE
from timm_paf.engine.cli import find_config
from timm_paf.engine.fields import Settings, known_keys, read_yaml, settings_by_group
from timm_paf.engine.optim import learning_rate
from timm_paf.engine.train_config import INCIDENTAL, TrainConfig

__all__ = ['Cell', 'Sweep', 'SweepConfig', 'read_sweep']

_run, _speed = settings_by_group('run', 'speed and memory')
FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}
OWN = {'model', 'output', 'experiment', 'resume', 'resume_changed', 'dry_run', 'config', 'device'}  # set by the sweep
RESOLVED = {'amp', 'channels_last', 'class_names'}  # the run fills them in where they are not set


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Settings of a sweep."""
    config: str = _run(
        'sweep_digits', 'Grid: a YAML file, or the name of a shipped one such as sweep_digits.', metavar='FILE')
    output: str | None = _run(
        None, 'Folder of the sweep, with one folder per cell.', metavar='DIR', unset='output/NAME-OF-THE-GRID')
    workers: int | None = _speed(
        None, 'Number of cells to run at the same time, each in a process of its own.', least=1,
        unset='number of --devices, or 1')
    devices: tuple[str, ...] = _speed(
        (), 'Devices that the workers share, such as cuda:0 cuda:1.', unset='cuda if a GPU is available, else cpu')
    threads: int | None = _speed(
        None, 'Number of CPU threads per worker. On a CPU the last digits of the weights depend on it.', least=1,
        unset='the available cores divided by --workers')
    time_limit: float | None = _speed(
        None, 'Stop after this number of seconds: running cells write a checkpoint, and the same command continues '
        'them.', above=0, unset='no limit')
    slurm: tuple[str, ...] = _speed(
        (), 'Run as a Slurm array, which needs submitit. The values are parameters of submitit, such as timeout_min=60 '
        'gpus_per_node=1 slurm_partition=gpu; array_size=N is the number of jobs that share the cells.',
        metavar='NAME=VALUE', unset='run here')
    dry_run: bool = _run(False, 'List the cells and estimate the time of one, then exit. Writes nothing.')
    report_only: bool = _run(False, 'Only write table and report again, from the runs in --output.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of the grid."""
    name: str  #: Name of the run's folder.
    activation: str  #: Name of the activation.
    parameters: Mapping[str, float]  #: Values of alpha and beta that are fixed, or that training starts from.
    learned: bool  #: Whether the activation has parameters that training changes.
    options: Mapping[str, str]  #: The other axes with their values as texts.
    seed: int  #: Seed of the run.
    settings: Mapping[str, Any]  #: Fields of `TrainConfig`.

    def config(self, output: str | Path, *, device: str | None = None) -> TrainConfig:
        """Settings of the run, which resumes if it was interrupted."""
        return TrainConfig(**{
            **self.settings, 'output': str(output), 'experiment': self.name, 'resume': 'auto', 'device': device})

    def differences(self, trained: Mapping[str, Any]) -> list[str]:
        """Names of the settings that differ from the content `trained` of a run's args.yaml.

        A setting that an older version did not have had its default, or the value in `BEFORE`.
        """
        config = self.config('')
        old, now = {**TrainConfig().to_dict(), **BEFORE, **trained}, config.to_dict() | {'lr': learning_rate(config)}
        for values in (old, now):
            values['val_size'] = values['val_size'] or 1024  # what an unset one is, except for small data sets
        return [name for name in sorted(FIELDS - INCIDENTAL)
                if now[name] != old[name] and not (name in RESOLVED and now[name] in (None, []))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid file."""
    name: str  #: Name of the file without its ending.
    cells: tuple[Cell, ...]  #: Its cells, all those of the first seed first.


def read_sweep(config: str) -> Sweep:
    """Read a grid file and expand its grid.

    The file has four keys. `base`: a configuration, shipped or a file. `arch`: the architecture, such as wrn10_2.
    `settings`: fields of `TrainConfig` that hold for all cells. `grid`: a list of blocks; the cells of a block are all
    combinations of its values. A block has the keys `activation`, `fixed` (values of parameters that are not trained,
    as in {alpha: [1, 2]}), `learned` (values that training starts from), `settings` (fields of `TrainConfig` for the
    cells of the block, which do not count as options), and any field of `TrainConfig`.

    Args:
        config: A YAML file, or the name of a shipped one.

    Raises:
        ValueError: If a key, a value or an activation is unknown, or two cells are the same.
    """
    path = find_config(config)
    content = read_yaml(path, ('base', 'arch', 'settings', 'grid'))
    if not isinstance(content.get('grid'), list) or not content['grid'] or 'arch' not in content:
        raise ValueError(f'sweep {path}: expected the keys arch and grid, and in grid a list of blocks.')
    base = read_yaml(find_config(content['base']), FIELDS) if 'base' in content else {}
    base = {key: value for key, value in base.items() if key not in OWN}
    base |= known_keys(content.get('settings') or {}, FIELDS - OWN, f'sweep {path}, settings')
    cells: dict[str, Cell] = {}
    for number, block in enumerate(content['grid'], 1):
        label = f'sweep {path}, block {number} of grid'
        if not isinstance(block, dict) or 'activation' not in block:
            raise ValueError(f'{label}: expected lines "key: values", one of them with the key activation.')
        block = known_keys(block, {'activation', 'fixed', 'learned', 'settings', *FIELDS} - OWN, label)
        if 'autoattack' in block:
            raise ValueError(f'{label}: autoattack cannot be an axis of the grid; move it to settings.')
        settings = base | known_keys(block.pop('settings', None) or {}, FIELDS - OWN, f'{label}, settings')
        try:
            for cell in _expand(block, settings, str(content['arch'])):
                if cells.setdefault(cell.name, cell) is not cell:
                    raise ValueError(f'{cell.name} is in the grid twice; expected each cell once.')
        except (TypeError, ValueError) as error:
            raise ValueError(f'{label}: {error}') from None
    return Sweep(name=path.stem, cells=tuple(sorted(cells.values(), key=lambda cell: cell.seed)))


def _expand(block: dict[str, Any], base: Mapping[str, Any], arch: str) -> Iterator[Cell]:
    """The cells of a block."""
    activations = _values(block.pop('activation'))
    fixed, learned = (_points(name, block.pop(name, None)) for name in ('fixed', 'learned'))
    points = [*((False, point) for point in fixed), *((True, point) for point in learned)] or [(True, {})]
    axes = {'seed': [base.get('seed', 0)], **{name: _values(values) for name, values in block.items()}}
    for activation, (learn, parameters), values in itertools.product(
            activations, points, itertools.product(*axes.values())):
        settings = {**base, **dict(zip(axes, values, strict=True))}
        options = {name: _text(value) for name, value in zip(axes, values, strict=True) if name != 'seed'}
        settings |= _model_settings(arch, activation, parameters, learn, settings)
        seed = TrainConfig(**settings).seed  # also checks all values
        texts = [f'{"start-" if learn else ""}{name}={value:g}' for name, value in parameters.items()]
        texts += [f'{name}={text}' for name, text in [*options.items(), ('seed', str(seed))]]
        yield Cell(
            name=re.sub(r'[^\w.,=+-]', '_', ','.join([activation, *texts])), activation=activation,
            parameters=parameters, learned=learn and activation in ACTIVATIONS, options=options, seed=seed,
            settings=settings)


def _values(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _points(name: str, values: Any) -> list[dict[str, float]]:
    """All combinations of the values of parameters, from {alpha: [1, 2]}."""
    if values is None:
        return []
    if not isinstance(values, dict) or not values:
        raise ValueError(f'{name} = {values!r}: expected values of parameters such as {{alpha: [1, 2]}}.')
    try:
        return [dict(zip(values, map(float, point), strict=True))
                for point in itertools.product(*map(_values, values.values()))]
    except (TypeError, ValueError):
        raise ValueError(f'{name} = {values!r}: expected numbers.') from None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return '+'.join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _model_settings(
        arch: str, activation: str, parameters: Mapping[str, float], learn: bool, settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields `model`, `model_kwargs` and `act_fixed` of an architecture with an activation.

    A name such as wrn10_2_psilu is used if it exists. Other activations go into the network as its `act_layer`.
    """
    kwargs = list(_values(settings.get('model_kwargs') or []))
    if parameters:
        if activation not in ACTIVATIONS:
            raise ValueError(f'{activation} has no parameters; expected one of {", ".join(ACTIVATIONS)}.')
        values: dict[str, Any] = dict(parameters)
        ACTIVATIONS[activation](**values)  # raises an error for a wrong name or value
    model = next(filter(timm.is_model, (f'{arch}_{activation}', f'{arch}_relu', arch)), None)
    if model is None:
        raise ValueError(f'arch = {arch}: timm knows neither {arch}_relu nor {arch}.')
    if model != f'{arch}_{activation}':
        try:
            get_act_layer(activation)
        except (KeyError, AssertionError):
            raise ValueError(f'activation = {activation}: timm knows no such activation.') from None
        kwargs.append(f'act_layer={"shared_" if activation in ACTIVATIONS else ""}{activation}')
    if parameters and learn:
        if model != f'{arch}_{activation}':
            raise ValueError(f'learned: {arch} takes no start values; expected an architecture of timm_paf.')
        kwargs.append(f'act_kwargs={{{", ".join(f"{name}: {value!r}" for name, value in parameters.items())}}}')
    fixed = [*_values(settings.get('act_fixed') or []), *(
        f'{name}={value!r}' for name, value in parameters.items() if not learn)]
    return {'model': model, 'model_kwargs': kwargs, 'act_fixed': fixed}
