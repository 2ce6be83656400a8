"""The pages of docs/command-line: the flags of each command, made from its settings or its parser."""
import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from timm_paf.engine import SweepConfig, TrainConfig, ValidateConfig
from timm_paf.engine.cli import parse_config, shown_value
from timm_paf.engine.fields import Settings, fields_by_group, flag, range_in_words
from timm_paf.synthesis import SyntheticConfig

RECIPES = Path(__file__).resolve().parents[1] / 'recipes'
TRAIN, VALIDATE = 'python -m timm_paf train', 'python -m timm_paf validate --checkpoint model_best.pth.tar'
SYNTHETIC, SWEEP = 'python recipes/make_synthetic.py --output', 'python recipes/shape_sweep.py'
DIFFUSION = f'{SYNTHETIC} synthetic --method diffusion'

# An example for each heading. Building the site parses them.
EXAMPLES: dict[type[Settings], dict[str, str]] = {
    TrainConfig: {
        'run': f'{TRAIN} -c rice2020_cifar10_linf --output runs --experiment first --resume auto',
        'data': f'{TRAIN} --dataset torch/cifar10 --data-dir ~/data --dataset-download --val-size 1000',
        'synthetic images': f'{TRAIN} --dataset digits --synthetic generated --synthetic-fraction 0.7',
        'augmentation': f'{TRAIN} --dataset torch/cifar10 --crop-padding 4 --hflip --cutmix 1.0',
        'model': f'{TRAIN} --dataset folder --data-dir ~/photos --model resnet18_224_pssilu',
        'activation': f'{TRAIN} --model wrn10_2_pssilu --act-fixed alpha=2.0 --act-sharing stage',
        'attack': f'{TRAIN} --dataset torch/cifar10 --norm l2 --eps 0.5 --attack-steps 10 --attack-step-size 0.075',
        'loss': f'{TRAIN} --task trades --trades-beta 6 --awp-gamma 0.005',
        'optimizer': f'{TRAIN} --batch-size 256 --lr 0.2 --opt adamw --weight-decay 0.05 --clip-grad 1.0',
        'schedule': f'{TRAIN} --epochs 200 --sched multistep --decay-milestones 100 150 --decay-rate 0.1',
        'EMA': f'{TRAIN} --model-ema --model-ema-decay 0.995 --model-ema-warmup',
        'speed and memory': f'{TRAIN} --no-amp --channels-last --data-on-device yes',
        'measurement': f'{TRAIN} --n-examples 1000 --autoattack apgd-ce,apgd-t --val-interval 5',
        'checkpoints and logs': f'{TRAIN} --checkpoint-minutes 5 --checkpoint-hist 3 --log-tensorboard',
    },
    ValidateConfig: {
        'run': f'{VALIDATE} --output measured --save-adv adversarial.npz',
        'data': f'{VALIDATE} --dataset torch/cifar10 --data-dir ~/data --split test',
        'model': f'{VALIDATE} --model wrn28_10_pssilu --no-use-ema',
        'activation': f'{VALIDATE} --model resnet50 --act-sharing layer',
        'attack': f'{VALIDATE} --attack pgd --norm l2 --eps 0.5',
        'speed and memory': f'{VALIDATE} --torchcompile inductor',
        'measurement': f'{VALIDATE} --n-examples 1000 --eps-curve 0,2/255,4/255,8/255 --corruptions CIFAR-10-C',
        'RobustBench entry': (
            f"{VALIDATE} --robustbench-json entry.json --robustbench-link https://arxiv.org/abs/2110.05626 "
            "--robustbench-name 'My paper' --robustbench-authors 'A. Author' --robustbench-venue 'NeurIPS 2025' "
            '--no-robustbench-additional-data'),
    },
    SweepConfig: {
        'run': f'{SWEEP} -c sweep_digits --output output/sweep --dry-run',
        'speed and memory': f'{SWEEP} -c sweep_cifar10_gpu --devices cuda:0 cuda:1 --time-limit 3600',
    },
    SyntheticConfig: {
        'data': f'{SYNTHETIC} digits_synth.npz --num-images 10000 --seed 0',
        'speed and memory': f'{DIFFUSION} --generator ddpm --dataset folder --data-dir ~/photos --workers 8',
        '--method mixture': f'{SYNTHETIC} digits_synth.npz --components 20 --mixtures 3 --overwrite',
        '--method diffusion': f'{DIFFUSION} --generator ddpm --sampler ddim --sampling-steps 50',
        '--train': f'{DIFFUSION} --train --train-steps 2000 --train-width 32',
        'labels and filters of --method diffusion': (
            f'{DIFFUSION} --generator ddpm --labeller-checkpoint model_best.pth.tar --min-confidence 0.9'),
    },
}


def option(flags: str, text: str, *facts: str) -> list[str]:
    """A flag with its text, and below it what holds by default and what is allowed."""
    below = ' '.join(fact for fact in facts if fact)
    return [f'.. option:: {flags}', '', f'   {text}', '', *([f'   {below}', ''] if below else [])]


def flags_of_settings(cls: type[Settings]) -> Iterator[str]:
    """Directives for the fields of a `Settings` class, with an example under each heading."""
    hints, examples = typing.get_type_hints(cls), dict(EXAMPLES[cls])
    for group, fields in fields_by_group(cls).items():
        example = examples.pop(group)
        words = shlex.split(example)
        parse_config(cls, words[4 if '-m' in words else 2:], reads_config=cls is not SweepConfig)
        yield from [group[0].upper() + group[1:], '-' * len(group), '']
        yield from ['.. code-block:: bash', '', *wrapped(example), '']
        for field in fields:
            meta, hint, name = field.metadata, hints[field.name], flag(field.name)
            kinds = {hint, *typing.get_args(hint)}
            low_high = range_in_words(*meta['bounds'])
            number = 'a whole number' if int in kinds else 'a number' if float in kinds else ''
            allowed = number and f'Expects {low_high.replace("a number", number)}.'
            allowed = choices_in_words(meta['choices'] or ()) or allowed
            value = meta['metavar'] or ('X' if float in kinds else 'N' if int in kinds else 'NAME')
            flags = f'{name}, --no-{name[2:]}' if bool in kinds else f'{name} {value}' + (
                ' ...' if typing.get_origin(hint) is tuple else '')
            shown = shown_value(field.default, meta['unset'])
            default = f'Default: {plain(shown) if shown == meta["unset"] else f"``{shown}``"}.'
            yield from option('-c, ' * (field.name == 'config') + flags, plain(meta['help']), default, allowed)
    assert not examples, f'examples of headings that {cls.__name__} does not have: {list(examples)}'


def wrapped(command: str) -> list[str]:
    """The lines of a command, which fit the page; a flag and its value stay together."""
    lines = ['']
    for part in re.split(r' (?=-)', command):
        if len(lines[-1]) + len(part) > 76:
            lines[-1] += '\\'
            lines.append('    ')
        lines[-1] += f'{part} '
    return [f'   {line.rstrip()}' for line in lines]


def choices_in_words(choices: Iterable[Any]) -> str:
    """The values that a flag takes; nothing if it takes others too."""
    named = [f'``{choice}``' for choice in choices if choice not in (None, '')]
    return f'Choices: {", ".join(named)}.' if named else ''


def plain(text: str) -> str:
    """A help text in which a star, bar or underscore is a character, not markup; flags are code."""
    text = re.sub(r'([*|`_])', r'\\\1', text)
    return re.sub(r'(?<![\w-])(--[a-z][a-z-]*[a-z])', r'``\1``', text)


class Found(BaseException):
    """Carries the parser of a script."""


def parser_of(script: Path) -> argparse.ArgumentParser:
    """The parser of a script, which runs up to where it parses its arguments."""
    def stop(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Found(parser)

    with mock.patch.object(argparse.ArgumentParser, 'parse_args', stop), mock.patch.object(
            sys, 'path', [str(script.parent), *sys.path]), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(str(script), run_name='__main__')
        except Found as found:
            return found.args[0]
    raise ValueError(f'{script} parses no arguments.')


def flags_of_parser(actions: Iterable[argparse.Action]) -> Iterator[str]:
    """Directives for the arguments of a parser."""
    for action in actions:
        value = action.metavar or ('' if action.nargs == 0 else action.dest.upper())
        many = ' ...' if action.nargs in ('*', '+') else ''
        flags = ', '.join(action.option_strings) or action.dest.upper()
        negative = isinstance(action, argparse.BooleanOptionalAction)
        text = (action.help or f'The {action.dest}').split(' (default')[0]
        unset = action.default in (None, False, '', float('inf'), '-', [])
        yield from option(
            flags if negative or not action.option_strings else f'{flags} {value}{many}'.rstrip(),
            plain(text[:1].upper() + text[1:].rstrip('.') + '.'),
            'Required.' if action.required else '' if unset else f'Default: ``{shown_value(action.default, "")}``.',
            choices_in_words(action.choices or ()))


def sections(scripts: list[Path]) -> Iterator[str]:
    """What the docstring of each script says, and its flags; those that most of many scripts have come first."""
    own = {script: {action.dest: action for action in parser_of(script)._actions if action.dest != 'help'}
           for script in scripts}
    counts = Counter(dest for actions in own.values() for dest in actions)
    shared = [dest for dest in own[scripts[0]] if counts[dest] > max(2, len(scripts) / 2)]
    if shared:
        title = 'Flags that most benchmarks have'
        yield from [title, '-' * len(title), '', '.. program:: benchmarks', '']
        yield from flags_of_parser(own[scripts[0]][dest] for dest in shared)
    for script, actions in own.items():
        doc = re.search(r'^r?"""(.*?)"""', script.read_text(encoding='utf-8'), re.DOTALL)[1]
        title = script.relative_to(RECIPES.parent).as_posix()
        yield from [title, '-' * len(title), '', f'.. program:: {script.stem}', '']
        yield from doc.replace('\n    ', '\n   ').replace('\n\n   ', '\n\n.. code-block:: bash\n\n   ').splitlines()
        yield from ['', *flags_of_parser(action for dest, action in actions.items() if dest not in shared)]


def write_commands(folder: Path) -> None:
    """Write the pages."""
    folder.mkdir(exist_ok=True)
    pages = {
        'train': ('python -m timm_paf train', 'In a checkout also ``python recipes/adv_train.py``: train a network '
                  'adversarially, then measure its robustness. See :doc:`/recipes/training`.', TrainConfig),
        'validate': ('python -m timm_paf validate', 'In a checkout also ``python recipes/adv_validate.py``: measure '
                     'the robustness of a checkpoint. See :doc:`/evaluate/evaluation`.', ValidateConfig),
        'shape-sweep': ('recipes/shape_sweep.py', 'Train a grid of activations, and compare them. See '
                        ':doc:`/recipes/shape_sweep`.', SweepConfig),
        'make-synthetic': ('recipes/make_synthetic.py', 'Make labelled synthetic images. See :doc:`/recipes/data`.',
                           SyntheticConfig)}
    texts = {name: [title, '=' * len(title), '', text, '', f'.. program:: {name}', '', *flags_of_settings(cls)]
             for name, (title, text, cls) in pages.items()}
    benchmarks = [path for path in sorted((RECIPES / 'benchmarks').glob('[a-z]*.py'))
                  if path.stem != 'gpu_table']  # which makes a table from runs
    for name, title, scripts in (
            ('tools', 'Other recipes', [RECIPES / 'convert_pickle.py', RECIPES / 'survey_act_layers.py']),
            ('benchmarks', 'Benchmarks', benchmarks)):
        texts[name] = [title, '=' * len(title), '', *sections(scripts)]
    for name, lines in texts.items():
        path, content = folder / f'{name}.rst', '\n'.join(lines) + '\n'
        if not path.exists() or path.read_text(encoding='utf-8') != content:  # else Sphinx reads the page again
            path.write_text(content, encoding='utf-8')
