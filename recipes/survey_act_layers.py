"""List which of timm's architectures accept a parametric activation, and how.

    python recipes/survey_act_layers.py --output docs/tables/act_layers.md

Builds each model of timm (or those of `--filter 'vit_*' 'swin*'`) on the meta device with `act_layer='pssilu'`, with
`act_layer=timm_paf.shared('pssilu')`, and converted with `timm_paf.convert_activations`. Nothing is downloaded.
"""
import argparse
import contextlib
import itertools
import sys
from collections import Counter
from datetime import date
from typing import Any, NamedTuple

import timm
import torch
from torch.overrides import TorchFunctionMode

import timm_paf
from timm_paf.activations import ParametricActivation

WAYS = {  # from the easiest
    'keyword': "`act_layer='pssilu'` replaces every activation",
    'keyword in part': "`act_layer='pssilu'` replaces some activations; conversion replaces the rest",
    'function': "a name is refused, `act_layer=timm_paf.shared('pssilu')` replaces every activation",
    'function in part': 'the same replaces some activations; conversion replaces the rest',
    'conversion': '`timm_paf.convert_activations` after building',
    'untouched': 'none: there is nothing to replace'}
PAGE = """\
# timm's architectures and parametric activations

`{command}`, {date}, torch {torch.__version__}, timm {timm.__version__}: {count} models on the meta device.

| way | models | what works |
| --- | ---: | --- |
{totals}

"Places" counts the activations that conversion replaces, from the fewest to the most in a family. "Still running" lists
the functions that converted models call: those in a method's code and, in italics, gates, which conversion leaves.

| family | models | ways | places | still running |
| --- | ---: | --- | ---: | --- |"""
GATES = {'sigmoid', 'hardsigmoid', 'tanh', 'glu', 'hardtanh', 'lstm'}  # conversion leaves them
FUNCTIONS = GATES | {'relu', 'relu6', 'leaky_relu', 'elu', 'gelu', 'silu', 'mish', 'softplus', 'hardswish', 'maximum'}


class Result(NamedTuple):
    name: str
    family: str
    way: str
    places: int
    running: set[str]


class Recorder(TorchFunctionMode):
    """Record activation functions that a model runs outside of parametric activations, as 'relu in Block'."""
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.modules, self.seen = [model], set[str]()
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, inputs: self.modules.append(module))
            module.register_forward_hook(lambda module, inputs, output: self.modules.__delitem__(-1))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = getattr(func, '__name__', '').removesuffix('_')
        if name in FUNCTIONS and not isinstance(self.modules[-1], ParametricActivation):
            self.seen.add(f'{name} in {type(self.modules[-1]).__name__}')
        return func(*args, **(kwargs or {}))


def replaced(model: torch.nn.Module) -> int:
    with contextlib.suppress(ValueError):  # there is nothing to replace
        return len(timm_paf.convert_activations(model, 'pssilu', preserve=False).replaced)
    return 0


def survey_model(name: str) -> Result:
    family = timm.model_entrypoint(name).__module__.rsplit('.', 1)[-1]
    with torch.device('meta'), torch.no_grad():
        model = timm.create_model(name).eval()
        places = replaced(model)
        with Recorder(model) as recorder:
            model(torch.zeros(2, *(timm.get_pretrained_cfg_value(name, 'input_size') or ())))
        for way, act_layer in (('keyword', 'pssilu'), ('function', timm_paf.shared('pssilu'))):
            try:
                built = timm.create_model(name, act_layer=act_layer)
            except Exception:  # models refuse the argument in many ways
                continue
            if timm_paf.paf_parameters(built):
                return Result(name, family, f'{way} in part' if replaced(built) else way, places, recorder.seen)
    return Result(name, family, 'conversion' if places else 'untouched', places, recorder.seen)


def markdown(results: list[Result], command: str) -> str:
    totals = '\n'.join(f'| {way} | {sum(r.way == way for r in results)} | {text} |' for way, text in WAYS.items())
    lines = [PAGE.format(command=command, date=date.today(), torch=torch, timm=timm, count=len(results), totals=totals)]
    differing = ['', '## Models that differ from the rest of their family', '']
    for family, group in itertools.groupby(sorted(results, key=lambda r: r.family), key=lambda r: r.family):
        members = list(group)
        ways, places = Counter(result.way for result in members), [result.places for result in members]
        cell = ', '.join(f'{way} {ways[way]}' if len(ways) > 1 else way for way in WAYS if ways[way])
        span = '–'.join(map(str, sorted({min(places), max(places)})))
        calls = sorted((call.split()[0] in GATES, call) for call in set().union(*(r.running for r in members)))
        running = ', '.join(f'*{call}*' if gate else call for gate, call in calls)
        lines.append(f'| {family} | {len(members)} | {cell} | {span} | {running} |')
        differing += [f'- {family}, {way}: ' + ', '.join(f'`{result.name}`' for result in members if result.way == way)
                      for way, _ in ways.most_common()[1:]]
    return '\n'.join(lines + differing)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--filter', nargs='+', default=[], help="names or patterns, as 'vit_*'; default: all models")
    parser.add_argument('--output', type=argparse.FileType('w'), default='-', help='Markdown file; unset: print')
    args = parser.parse_args(argv)
    names = [n for n in timm.list_models(args.filter) if timm.model_entrypoint(n).__module__.startswith('timm.')] or (
        parser.error(f"--filter {' '.join(args.filter)}: timm has no such model; wildcards are allowed, as in 'vit_*'"))
    results = []
    for name in names:
        try:
            results.append(survey_model(name))
        except Exception as error:  # one model must not end the survey
            print(f'{name} is left out: {type(error).__name__}: {error}', file=sys.stderr)
    print(markdown(results, ' '.join(['python recipes/survey_act_layers.py', *argv])), file=args.output)
    args.output.close()


if __name__ == '__main__':
    main(sys.argv[1:])
