"""Which of timm's architectures take a parametric activation, and how.

    python recipes/survey_act_layers.py --output docs/tables/act_layers.md --json output/act_layers.json
    python recipes/survey_act_layers.py --filter 'vit_*' 'swin*'

Every model of timm is built on the meta device, without weights: with `act_layer='pssilu'`, with
`act_layer=timm_paf.shared('pssilu')`, and plainly to be converted by `timm_paf.convert_activations`. The converted one
runs once, and the activation functions that still run are noted. Nothing is downloaded.
"""
import dataclasses
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import Any

import timm
import torch
from _survey_report import markdown, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import timm_paf
from timm_paf.activations import ACTIVATIONS, ParametricActivation
from timm_paf.activations.sites import ACTIVATION_TYPES, attribute_sites, module_sites, nearest_type
from timm_paf.engine.cli import parse_config, run, setting
from timm_paf.engine.progress import duration

# what torch runs for an activation, by the name to report
OPERATIONS = {
    'relu': 'relu', 'leaky_relu': 'leaky_relu', 'elu': 'elu', 'gelu': 'gelu', 'silu': 'silu', 'mish': 'mish',
    'softplus': 'softplus', 'hardswish': 'hardswish', '_prelu_kernel': 'prelu', 'hardtanh': 'hardtanh',
    'sigmoid': 'sigmoid', 'hardsigmoid': 'hardsigmoid', 'tanh': 'tanh', 'glu': 'glu', 'maximum': 'maximum',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """What to look at and where to write."""
    filter: tuple[str, ...] = setting((), "names or patterns such as 'vit_*'; all of timm if unset")
    activation: str = setting('pssilu', 'the parametric activation to put', choices=tuple(ACTIVATIONS))
    output: str = setting('', 'Markdown file to write, NAME.md; printed if unset')
    json: str = setting('', 'file for the result of every model, NAME.json')

    def __post_init__(self) -> None:
        for flag, name, suffix in (('--output', self.output, '.md'), ('--json', self.json, '.json')):
            if name and Path(name).suffix != suffix:
                raise ValueError(f'{flag} = {name}: expected a name that ends in {suffix}.')
            if name and not Path(name).parent.is_dir():
                raise ValueError(f'{flag} = {name}: there is no folder {Path(name).parent}; make it first.')


@dataclasses.dataclass(kw_only=True)
class ModelResult:
    """What was found for one model; an error is its first line, '' if there was none.

    Attributes:
        name: timm's name.
        family: The module of timm that declares it.
        error: Why it cannot be built as it is.
        keyword_error: Why it cannot be built with `act_layer=` and a name.
        keyword_places: Places with the activation when built so.
        keyword_stay: Activations that stay then, though conversion would replace them.
        shared_error: Why it cannot be built with `act_layer=timm_paf.shared(...)`.
        shared_places: Places with the activation when built so.
        shared_stay: Activations that stay then.
        convert_error: Why conversion failed.
        convert_places: Places that conversion of the plain model replaced.
        left: What the report of the conversion names as left, and how often, by its reason.
        running: Activation functions that still ran in the converted model, as 'sigmoid in Sigmoid', and how often;
            of several models that consist of the same classes, the first one's.
        run_error: Why the converted model did not run on the meta device.
    """
    name: str
    family: str
    error: str = ''
    keyword_error: str = ''
    keyword_places: int = 0
    keyword_stay: int = 0
    shared_error: str = ''
    shared_places: int = 0
    shared_stay: int = 0
    convert_error: str = ''
    convert_places: int = 0
    left: dict[str, int] = dataclasses.field(default_factory=dict)
    running: dict[str, int] = dataclasses.field(default_factory=dict)
    run_error: str = ''

    @property
    def outcome(self) -> str:
        """The easiest way that works, one of `OUTCOMES`."""
        if self.error:
            return 'fails'
        if self.keyword_places:
            return 'keyword in part' if self.keyword_stay else 'keyword'
        if self.shared_places:
            return 'function in part' if self.shared_stay else 'function'
        return 'conversion' if self.convert_places else 'untouched'


class RunningActivations(TorchDispatchMode):
    """Notes the activation functions that run outside of parametric activations, with the module that runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> 'RunningActivations':
        self.handles = [
            register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self.handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        self.modules.append(module)

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = OPERATIONS.get(func.overloadpacket.__name__.removesuffix('_'))
        if name and self.modules and not isinstance(self.modules[-1], ParametricActivation):
            self.seen[f'{name} in {type(self.modules[-1]).__name__}'] += 1
        return func(*args, **(kwargs or {}))


def first_line(error: Exception) -> str:
    """An error as a line for a table."""
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def places_of(model: nn.Module) -> int:
    """How many places of a model hold a parametric activation."""
    return sum(1 for _ in module_sites(model, lambda module: isinstance(module, ParametricActivation)))


def survey_model(name: str, activation: str, ran: dict[Any, Any]) -> ModelResult:
    """Build, convert and run one model on the meta device.

    Args:
        name: timm's name.
        activation: Registered name of a parametric activation.
        ran: What ran in earlier models, by their classes; models of the same classes run the same functions.
    """
    result = ModelResult(name=name, family=timm.model_entrypoint(name).__module__.rsplit('.', 1)[-1])
    with torch.device('meta'):
        # a model may fail in any way, and is a row then
        try:
            model = timm.create_model(name).eval()
        except Exception as error:
            result.error = first_line(error)
            return result
        classes = frozenset(type(module) for module in model.modules())
        for argument, kind in ((activation, 'keyword'), (timm_paf.shared(activation), 'shared')):
            try:
                built = timm.create_model(name, act_layer=argument)
            except Exception as error:
                setattr(result, f'{kind}_error', first_line(error))
                continue
            setattr(result, f'{kind}_places', places_of(built))
            stay = module_sites(built, lambda module: nearest_type(module) in ACTIVATION_TYPES)
            setattr(result, f'{kind}_stay', len([*stay, *attribute_sites(built)]))
        try:
            report = timm_paf.convert_activations(model, activation, preserve=False)
        except Exception as error:
            result.convert_error = first_line(error)
        else:
            result.convert_places = len(report.replaced)
            result.left = dict(Counter(f'{item.old}: {item.reason}' for item in report.left))
        if classes not in ran:
            ran[classes] = run_once(model)
        result.running, result.run_error = ran[classes]
    return result


def run_once(model: nn.Module) -> tuple[dict[str, int], str]:
    """The activation functions of one forward pass, and the error if it failed."""
    mode = RunningActivations()
    try:
        with torch.no_grad(), mode:
            model(torch.zeros(2, *model.pretrained_cfg['input_size']))
    except Exception as error:  # as above
        return {}, first_line(error)
    return dict(mode.seen), ''


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of models that are deprecated or renamed."""
    logger = logging.getLogger('timm')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)


def model_names(patterns: tuple[str, ...]) -> list[str]:
    """Timm's own models that match, in timm's order.

    Raises:
        ValueError: If a pattern matches none.
    """
    for pattern in patterns:
        if not timm.list_models(pattern):
            raise ValueError(f"--filter = {pattern}: timm has no such model; try '*{pattern.strip('*')}*'.")
    names = timm.list_models(list(patterns) if patterns else '')
    own = [name for name in names if timm.model_entrypoint(name).__module__.startswith('timm.')]
    if not own:
        raise ValueError(f'--filter = {" ".join(patterns)}: no model of timm itself matches.')
    return own


def survey(names: list[str], activation: str, console: Console) -> list[ModelResult]:
    """Look at models one after the other, with a bar on a terminal and a line now and then elsewhere."""
    results: list[ModelResult] = []
    ran: dict[Any, Any] = {}
    progress = Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn('left'),
        console=console, transient=True, disable=not console.is_terminal)
    with quiet(), progress:
        bar = progress.add_task('', total=len(names))
        for name in names:
            progress.update(bar, description=f'{name:40.40}')
            results.append(survey_model(name, activation, ran))
            progress.advance(bar)
            if not console.is_terminal and len(results) % 100 == 0:
                console.print(f'{len(results)}/{len(names)} models', highlight=False)
    return results


def write(prepared: tuple[SurveyConfig, list[str]]) -> None:
    """Survey, then print or write the results."""
    config, names = prepared
    console = Console(stderr=True)
    started = time.perf_counter()
    results = survey(names, config.activation, console)
    flags = [*(['--filter', *(repr(pattern) for pattern in config.filter)] if config.filter else [])]
    flags += [] if config.activation == 'pssilu' else ['--activation', config.activation]
    flags += ['--output', config.output] if config.output else []
    command = ' '.join([f'python recipes/{Path(__file__).name}', *flags])
    text = markdown(results, activation=config.activation, command=command)
    if config.output:
        Path(config.output).write_text(text)
    else:
        print(text)
    if config.json:
        models = [{**dataclasses.asdict(result), 'outcome': result.outcome} for result in results]
        Path(config.json).write_text(dumps(
            {'activation': config.activation, 'versions': versions(), 'models': models}, indent=1))
    console.print(f'{len(results)} models in {duration(time.perf_counter() - started)}', highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    def prepare() -> tuple[SurveyConfig, list[str]]:
        config = parse_config(SurveyConfig, argv, description=(__doc__ or '').splitlines()[0])
        return config, model_names(config.filter)

    return run(prepare, write)


if __name__ == '__main__':
    sys.exit(main())
