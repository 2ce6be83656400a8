"""The pages of the documentation and the README: Python blocks run as they stand, command lines are parsed."""
import argparse
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.distributed.run import get_args_parser

from timm_paf.engine import SweepConfig, parse_train_config, parse_validate_config, read_sweep
from timm_paf.engine.cli import parse_config
from timm_paf.synthesis import SyntheticConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(page.relative_to(ROOT).with_suffix('')): page.read_text() for page in [
    ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))] if '_build' not in page.parts}
OPTIONAL = ('lightning',)  # pages that import it are left out where it is missing
SLOW = {'docs/integrate/compile'}  # compilers
CHECKPOINTS = {  # files that commands on a page write, with the network whose weights they hold
    'docs/start/quickstart': ('output/train/first/model_best.pth.tar', 'wrn10_2_pssilu', 1),
    'docs/integrate/checkpoints': ('model_best.pth.tar', 'wrn10_2_pssilu', 3),
    'docs/evaluate/robustbench': ('model_best.pth.tar', 'wrn10_2_pssilu', 3),
    'docs/concepts/activations/pssilu': ('old.pth.tar', 'wrn10_2_pssilu_fixed', 3)}
# Nothing is downloaded: pretrained weights stay random, and CIFAR-10 has 200 random images.
SERVER = """\
import os, runpy, sys
import numpy as np
import torch, torchvision, timm, matplotlib.figure, sklearn.decomposition, scipy.optimize   # but not the package

class CIFAR10:
    def __init__(self, root, train=True, download=False):
        self.data = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
        self.targets = [index % 10 for index in range(200)]

torchvision.datasets.CIFAR10 = CIFAR10
timm.models._builder.load_pretrained = lambda *args, **kwargs: None
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.chdir(line.strip())
        output = os.open('output.txt', os.O_CREAT | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(output, stream)
        torch.manual_seed(0)
        status = 1
        try:
            sys.argv = ['page.py']
            runpy.run_path('page.py', run_name='__main__')
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def python_blocks(text):
    return re.findall(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def python_pages():
    for name, text in PAGES.items():
        if blocks := python_blocks(text):
            needed = [module for module in OPTIONAL if f'import {module}' in text]
            yield pytest.param(name, blocks, needed, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.fixture(scope='module')
def server():
    """A process that has imported torch and timm; it runs each page in a fork, because pages register names."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    with subprocess.Popen(
            [sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'PYTHONPATH': path}) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize(('name', 'blocks', 'needed'), list(python_pages()))
def test_the_python_of_a_page_runs(name, blocks, needed, tmp_path, server):
    for module in needed:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'needs {module}, which is not installed')
    if name in CHECKPOINTS:
        path, model, in_chans = CHECKPOINTS[name]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({'state_dict': timm.create_model(model, in_chans=in_chans).state_dict()}, tmp_path / path)
    (tmp_path / 'page.py').write_text('\n\n'.join(blocks))  # a file, because TorchScript reads sources
    server.stdin.write(f'{tmp_path}\n')
    server.stdin.flush()
    status = server.stdout.readline().strip()
    assert status == '0', (tmp_path / 'output.txt').read_text()[-4000:]


class ParsedArguments(BaseException):
    """Ends a script whose arguments have been parsed."""


def parse_with_argparse(script, arguments, monkeypatch):
    """The script's own parser, in the script as it is; nothing after it runs."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, argv=None, namespace=None):
        raise ParsedArguments(parse_args(parser, argv, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(ParsedArguments) as stopped:
        runpy.run_path(str(script), run_name='__main__')
    namespace, = stopped.value.args
    for value in vars(namespace).values():
        if hasattr(value, 'close'):
            value.close()
    if script.name == 'train_run.py':
        parse_train_config(namespace.flags)


def parse_sweep(arguments):
    config = parse_config(SweepConfig, arguments, reads_config=False)
    read_sweep(config.config)


def parse_alpha_start(arguments):
    """It takes some flags and leaves the rest to the parser of adv_train.py."""
    prepare = runpy.run_path(str(SCRIPTS['alpha_start.py']))['prepare']

    def stop(*_, **__):
        raise ParsedArguments

    prepare.__globals__['Trainer'] = stop
    with pytest.raises(ParsedArguments):
        prepare(arguments)


PARSERS = {  # recipes whose settings are dataclasses
    'adv_train.py': parse_train_config, 'adv_validate.py': parse_validate_config, 'shape_sweep.py': parse_sweep,
    'alpha_start.py': parse_alpha_start,
    'make_synthetic.py': lambda arguments: parse_config(SyntheticConfig, arguments)}
SCRIPTS = {path.name: path for path in [
    *ROOT.glob('recipes/*.py'), *ROOT.glob('recipes/benchmarks/[!_]*.py'), *ROOT.glob('recipes/benchmarks/*.sh')]}
PROGRAMS = ('python', 'python3', 'torchrun', 'srun')


def command_lines(text):
    """Command lines of a page: those in bash blocks, and code in sentences and tables that begins with a program."""
    fences = re.findall(r'^ *```(\w*).*?\n(.*?)^ *```$', text, re.MULTILINE | re.DOTALL)
    for language, content in fences:
        if language == 'bash':
            for line in content.replace('\\\n', ' ').splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index('&&') if '&&' in words else len(words)
                    yield words[:end]
                    words = words[end + 1:]
    outside = re.sub(r'^ *```.*?^ *```$', '', text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', outside):
        first = re.sub(r'^([A-Z_]+=\S+ )*', '', code).split()[0].removeprefix('.venv/bin/')
        if '*' not in code and (first in PROGRAMS or Path(first).name in SCRIPTS):
            yield shlex.split(code.replace('\n', ' '))


def script_and_arguments(words):
    """Script and arguments of a command line; srun and torchrun start a command line of their own."""
    while re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
    program, rest = words[0].removeprefix('.venv/bin/'), words[1:]
    if program == 'srun':
        return script_and_arguments(rest[next(i for i, word in enumerate(rest) if word[0] != '-'):])
    if program == 'torchrun':
        options = get_args_parser().parse_args(rest)
        rest = [*(['-m'] if options.module else []), options.training_script, *options.training_script_args]
    elif program not in PROGRAMS:
        rest = words
    if rest[:2] == ['-m', 'timm_paf']:
        return f'python -m timm_paf {rest[2] if len(rest) > 2 else ""}'.strip(), rest[3:]
    return rest[0], rest[1:]


def project_commands():
    seen = set()
    for name, text in PAGES.items():
        for words in command_lines(text):
            ours = any(Path(word).name in SCRIPTS or word.startswith('recipes/') for word in words)
            if (ours or ' -m timm_paf' in ' '.join(words)) and tuple(words) not in seen:
                seen.add(tuple(words))
                yield pytest.param(words, id=f'{name}: {shlex.join(words)}'[:150])


@pytest.mark.parametrize('words', list(project_commands()))
def test_a_command_line_is_parsed(words, tmp_path, monkeypatch):
    script, arguments = script_and_arguments(words)
    monkeypatch.chdir(tmp_path)
    for argument in arguments:  # a file to write needs its folder
        if '/' in argument and not Path(argument).is_absolute() and '://' not in argument:
            Path(argument).parent.mkdir(parents=True, exist_ok=True)
    if 'FILE' in arguments:  # the file of -c FILE
        grid = (ROOT / 'recipes' / 'configs' / 'sweep_digits.yaml').read_text()
        (tmp_path / 'FILE').write_text(grid if 'sweep' in script else '')
    if script.startswith('python -m timm_paf'):
        command = script.removeprefix('python -m timm_paf').strip()
        if command:  # without one it prints versions
            {'train': parse_train_config, 'validate': parse_validate_config}[command](arguments)
        return
    path = SCRIPTS[Path(script).name]
    assert str(path).endswith(f'/{script}')
    if path.suffix == '.sh' or len(words) == 1:
        return  # it takes no flags, or a sentence names it
    if path.name in PARSERS:
        PARSERS[path.name](arguments)
    else:
        parse_with_argparse(path, arguments, monkeypatch)


def test_named_files_and_extras_exist():
    extras = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)
    missing = []
    for name, text in PAGES.items():
        missing += [f'{name}: {path}' for path in re.findall(r'`(?:pytest .*?)?((?:tests|recipes)/[\w/]+\.\w+)', text)
                    if not (ROOT / path).exists()]
        missing += [f'{name}: extra {extra}' for group in re.findall(r"(?:timm-paf|'\.|\"\.)\[([\w,]+)\]", text)
                    for extra in group.split(',') if extra not in extras]
    assert missing == []


@pytest.mark.parametrize('words', [
    'python recipes/adv_train.py --no-such-flag', 'python -m timm_paf validate --no-such-flag',
    'torchrun --nproc-per-node 2 recipes/adv_train.py --epochs many', 'python recipes/shape_sweep.py --no-such-flag',
    'python recipes/convert_pickle.py FILE.pickle --outptu FILE.npz', 'python recipes/benchmarks/data.py --no-flag'])
def test_a_wrong_flag_is_noticed(words, tmp_path, monkeypatch):
    (text,) = command_lines(f'```bash\n{words}\n```')
    with pytest.raises((ValueError, SystemExit)):
        test_a_command_line_is_parsed(text, tmp_path, monkeypatch)
