"""Which of timm's architectures take a parametric activation, and how.

    python recipes/survey_act_layers.py --output docs/tables/act_layers.md
    python recipes/survey_act_layers.py --filter 'vit_*' 'swin*'

Every model of timm is built on the meta device, without weights: with `act_layer='pssilu'`, with
`act_layer=timm_paf.shared('pssilu')`, and without either for `timm_paf.convert_activations`. The converted model runs
once, to see which activation functions still run. Nothing is downloaded.
"""
import dataclasses
import logging
import platform
import sys
import warnings
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import timm_paf
from timm_paf.activations import ACTIVATIONS, ParametricActivation
from timm_paf.activations.sites import ACTIVATION_TYPES, attribute_sites, module_sites, nearest_type
from timm_paf.engine.cli import parse_config, run, setting

# the ways to a parametric activation, in the order of the table's columns
OUTCOMES = {
    'keyword': "`act_layer='{name}'` puts it at every place",
    'keyword in part': "`act_layer='{name}'` puts it at some places; conversion replaces the rest",
    'function': "a name is refused, `act_layer=timm_paf.shared('{name}')` works",
    'function in part': 'the same at some places; conversion replaces the rest',
    'conversion': '`timm_paf.convert_activations` after building',
    'untouched': 'none: there is nothing to replace',
    'fails': 'the model cannot be built on the meta device',
}
# torch's operations that are activation functions; the gates are left on purpose
GATES = {'sigmoid', 'hardsigmoid', 'tanh', 'glu', 'hardtanh'}
OPERATIONS = GATES | {
    'relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'mish', 'softplus', 'hardswish', '_prelu_kernel', 'maximum'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """Models to look at and the file to write."""
    filter: tuple[str, ...] = setting((), "names or patterns such as 'vit_*'; default: all models of timm")
    activation: str = setting('pssilu', 'parametric activation to use', choices=tuple(ACTIVATIONS))
    output: str = setting('', 'Markdown file to write, NAME.md; default: print to the terminal')

    def __post_init__(self) -> None:
        if self.output and Path(self.output).suffix != '.md':
            raise ValueError(f'--output = {self.output}: expected a name that ends in .md.')
        if self.output and not Path(self.output).parent.is_dir():
            raise ValueError(f'--output = {self.output}: there is no folder {Path(self.output).parent}; make it first.')


@dataclasses.dataclass(kw_only=True)
class ModelResult:
    """Result for one model: the easiest way that works, places that conversion replaced, what still runs, errors."""
    name: str
    family: str
    outcome: str = 'fails'
    places: int = 0
    running: list[str] = dataclasses.field(default_factory=list)
    refusal: str = ''
    errors: list[str] = dataclasses.field(default_factory=list)


class RunningActivations(TorchDispatchMode):
    """Record activation functions that run outside of parametric activations, and the class of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[nn.Module] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix('_')
        if name in OPERATIONS and self.modules and not isinstance(self.modules[-1], ParametricActivation):
            self.seen.add(f'{name.strip("_").removesuffix("_kernel")} in {type(self.modules[-1]).__name__}')
        return func(*args, **(kwargs or {}))


def running_activations(model: nn.Module, x: torch.Tensor) -> list[str]:
    """The activation functions of one forward pass, as 'relu in Block'; gates last."""
    mode = RunningActivations()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        mode.modules.pop()

    hooks = [register_module_forward_pre_hook(lambda module, inputs: mode.modules.append(module)),
             register_module_forward_hook(leave, always_call=True)]
    try:
        with torch.no_grad(), mode:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(mode.seen, key=lambda kind: (is_gate(kind), kind))


def is_gate(kind: str) -> bool:
    return kind.split(' ')[0] in GATES


def first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def survey_model(name: str, activation: str) -> ModelResult:
    """Build, convert and run one model on the meta device; a model that fails is a row of the page."""
    result = ModelResult(name=name, family=timm.model_entrypoint(name).__module__.rsplit('.', 1)[-1])
    with torch.device('meta'):
        try:
            model = timm.create_model(name).eval()
        except Exception as error:
            result.errors.append(first_line(error))
            return result
        result.outcome = 'untouched'
        for argument, way in ((activation, 'keyword'), (timm_paf.shared(activation), 'function')):
            try:
                built = timm.create_model(name, act_layer=argument)
            except Exception as error:
                if way == 'keyword':
                    result.refusal = first_line(error)
                continue
            stay = [*module_sites(built, lambda module: nearest_type(module) in ACTIVATION_TYPES),
                    *attribute_sites(built)]
            if any(isinstance(module, ParametricActivation) for module in built.modules()):
                result.outcome = f'{way} in part' if stay else way
                break
        try:
            result.places = len(timm_paf.convert_activations(model, activation, preserve=False).replaced)
            if result.outcome == 'untouched':
                result.outcome = 'conversion'
        except Exception as error:
            if result.outcome != 'untouched':
                result.errors.append(first_line(error))
        try:
            result.running = running_activations(model, torch.zeros(2, *model.pretrained_cfg['input_size']))
        except Exception as error:
            result.errors.append(f'did not run: {first_line(error)}')
    return result


def model_names(patterns: tuple[str, ...]) -> list[str]:
    """List timm's own models that match.

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


def shown(kinds: list[str]) -> str:
    return ', '.join(f'*{kind}*' if is_gate(kind) else kind for kind in dict.fromkeys(kinds))


def markdown(results: list[ModelResult], activation: str, command: str) -> str:
    """The page: totals, a row per family, and the models that differ from the rest of their family."""
    versions = (f'python {platform.python_version()}, torch {torch.__version__.split("+")[0]}, '
                f'timm {timm.__version__}, timm_paf {timm_paf.__version__}')
    counts = Counter(result.outcome for result in results)
    families: dict[str, list[ModelResult]] = {}
    for result in sorted(results, key=lambda result: result.family):
        families.setdefault(result.family, []).append(result)
    lines = [
        "# timm's architectures and parametric activations", '',
        f'`{command}`, {date.today().isoformat()}, {versions}: {len(results)} models on the meta device.', '',
        '| way | models | what works |', '| --- | ---: | --- |',
        *(f'| {way} | {counts[way]} | {text.format(name=activation)} |' for way, text in OUTCOMES.items()),
        '', '"Places" is the number of activations that conversion replaces, from the fewest to the most in a family. '
        '"Still running" are the activation functions of one forward pass of the converted models: functions called in '
        "a method's code, and in italics gates (squeeze-and-excitation, attention), which are left on purpose.", '',
        '## Families', '', '| family | models | ways | places | still running |', '| --- | ---: | --- | ---: | --- |']
    differing, refused = [], []
    for family, members in families.items():
        ways = Counter(result.outcome for result in members)
        cell = ', '.join(f'{way} {ways[way]}' if len(ways) > 1 else way for way in OUTCOMES if ways[way])
        span = '–'.join(str(n) for n in dict.fromkeys(f(r.places for r in members) for f in (min, max)))
        running = sorted({kind for r in members for kind in r.running}, key=lambda kind: (is_gate(kind), kind))
        lines.append(f'| {family} | {len(members)} | {cell} | {span} | {shown(running)} |')
        (common, _), *rest = ways.most_common()
        if rest:
            differing += [f'- **{family}** (else: {common})', *(
                f'  - {way}: ' + ', '.join(f'`{r.name}`' for r in members if r.outcome == way) for way, _ in rest)]
        errors = Counter(result.refusal for result in members if result.refusal)
        refused += [f'- {family} ({count}): `{error}`' for error, count in errors.items()]
    untouched = [f'- `{r.name}`: {shown(r.running) or "nothing"}' for r in results if r.outcome == 'untouched']
    failed = [f'- {result.name}: `{error}`' for result in results for error in result.errors]
    for title, items in (
            ('Models that differ from the rest of their family', differing), ('Why a name is refused', refused),
            ('What runs where nothing can be replaced', untouched), ('Errors', failed)):
        lines += ['', f'## {title}', '', *items] if items else []
    return '\n'.join(lines) + '\n'


def survey(prepared: tuple[SurveyConfig, list[str]]) -> None:
    """Look at the models one after the other, then print or write the page."""
    config, names = prepared
    logging.getLogger('timm').setLevel(logging.CRITICAL)  # notes on deprecated and renamed models
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in names:
            results.append(survey_model(name, config.activation))
            if len(results) % 100 == 0 or len(results) == len(names):
                print(f'{len(results)}/{len(names)} models', file=sys.stderr)
    flags = ['--filter', *map(repr, config.filter)] if config.filter else []
    flags += [] if config.activation == 'pssilu' else ['--activation', config.activation]
    flags += ['--output', config.output] if config.output else []
    text = markdown(results, config.activation, ' '.join([f'python recipes/{Path(__file__).name}', *flags]))
    if config.output:
        Path(config.output).write_text(text)
    else:
        print(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    def prepare() -> tuple[SurveyConfig, list[str]]:
        config = parse_config(SurveyConfig, argv, description=(__doc__ or '').splitlines()[0])
        return config, model_names(config.filter)

    return run(prepare, survey)


if __name__ == '__main__':
    sys.exit(main())
