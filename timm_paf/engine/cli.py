"""Command line of the engine: flags and YAML files become settings; a user's mistake becomes one line."""
import argparse
import contextlib
import dataclasses
import difflib
import io
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from timm_paf.data import DataChanged
from timm_paf.engine.fields import Settings, assignments, fields_by_group, flag, read_yaml, setting

__all__ = [
    'RunFailed', 'RunStopped', 'assignments', 'find_config', 'parse_config', 'replace_unencodable', 'run', 'setting',
    'shown_value']

Config = TypeVar('Config', bound=Settings)
Prepared = TypeVar('Prepared')


class RunFailed(Exception):
    """A run started and cannot continue: exit status 1."""


class RunStopped(Exception):
    """A run was asked to stop and can be resumed: exit status 3."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        near = ''
        if message.startswith('unrecognized arguments: --'):
            given = message.split()[2].split('=')[0]
            matches = difflib.get_close_matches(given, self._option_string_actions, n=1)
            near = f' (did you mean {matches[0]}?)' if matches else ''
        raise ValueError(message + near)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # flags stay whole


def shown_value(value: Any, unset: str) -> str:
    """The value of a setting as --help and the report show it."""
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if value is None or value == '' or value in ((), []):
        return unset or 'not set'
    return ' '.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _add_flags(parser: argparse.ArgumentParser, cls: type[Settings], defaults: Mapping[str, Any]) -> None:
    """One flag for each field, in groups, with the defaults that hold."""
    hints = typing.get_type_hints(cls)
    for name, fields in fields_by_group(cls).items():
        group = parser.add_argument_group(name)
        for field in fields:
            _add_flag(group, field, hints[field.name], defaults.get(field.name, field.default))


def _add_flag(group: Any, field: dataclasses.Field, hint: Any, default: Any) -> None:
    """The flag of a field, with the default that holds."""
    meta = field.metadata
    choices = [str(choice) for choice in meta['choices'] or () if choice not in (None, '')]
    text = f'{meta["help"]} (default: {shown_value(default, meta["unset"])})'
    options: dict[str, Any] = {'help': text.replace('%', '%%'), 'dest': field.name}
    flags = ('-c', flag(field.name)) if field.name == 'config' else (flag(field.name),)
    if hint is bool or bool in typing.get_args(hint):
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
        return
    kind = next((arg for arg in typing.get_args(hint) if arg in (int, float, str)), hint)
    usual = '{' + ','.join(choices) + '}' if choices else {int: 'N', float: 'X'}.get(kind, 'NAME')
    many = '*' if typing.get_origin(hint) is tuple else None
    group.add_argument(*flags, nargs=many, metavar=meta['metavar'] or usual, **options)


def config_folder() -> Path:
    """The folder of the shipped configurations: in the installed package, or recipes/configs of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / 'configs'
    return installed if installed.is_dir() else package.parent / 'recipes' / 'configs'


def find_config(name: str) -> Path:
    """The file of a configuration: a YAML file, or the name of a shipped one; ValueError if there is neither."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in config_folder().glob('*.yaml')}
    # a path of a checkout also names the configuration where there is no checkout
    if path.stem in shipped and path.suffix in ('', '.yaml') and str(path.parent) in ('.', 'recipes/configs'):
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f'did you mean {near[0]}?' if near else f'shipped configurations: {", ".join(sorted(shipped))}.'
    raise ValueError(f'config {name}: there is no such file; {hint}')


def parse_config(
        cls: type[Config], argv: Sequence[str] | None = None, *, description: str = '',
        default: Callable[[dict[str, Any]], str | Path | Mapping[str, Any] | None] = lambda given: None,
        reads_config: bool = True,
) -> Config:
    """Settings from the command line; flags override the YAML file, and the file overrides the defaults of the class.

    Args:
        cls: A `Settings` class. If it has a field `config`, -c and --config name a YAML file.
        argv: Arguments; None for those of the process.
        description: First line of --help.
        default: Called with the given flags when --config is missing; returns the file to read, or settings.
        reads_config: Whether the file of --config holds settings; else it is a setting as others.

    Raises:
        ValueError: If a key, flag or value is wrong.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    first = _Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False)
    _add_flags(first, cls, {})
    wants_help = any(word in ('-h', '--help') for word in (sys.argv[1:] if argv is None else argv))
    given = vars(first.parse_known_args(argv)[0] if wants_help else first.parse_args(argv))
    values: dict[str, Any] = {}
    chosen = (given.get('config') or default(given)) if reads_config else None
    if isinstance(chosen, Mapping):
        values = {name: value for name, value in chosen.items() if name in names}
    elif chosen:
        values = {**read_yaml(find_config(str(chosen)), names), 'config': str(chosen)}
    if wants_help:
        program = Path(sys.argv[0]).name
        if program == '__main__.py':
            program = ' '.join(['python -m timm_paf', *sys.argv[1:2]])
        parser = _Parser(usage=f'{program} [flags]', description=description, formatter_class=_Formatter)
        _add_flags(parser, cls, values)
        parser.parse_args(['--help'])
    return cls(**{**values, **given})


def replace_unencodable() -> None:
    """Show characters that the encoding of the output lacks as '?', so that no message ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == 'strict':
            stream.reconfigure(errors='replace')


def run(prepare: Callable[[], Prepared], execute: Callable[[Prepared], None]) -> int:
    """Run a command in two parts, so that a user's mistake is found before anything is written.

    Args:
        prepare: Reads settings, opens files, builds what is needed. Its errors are the user's mistakes: status 2.
        execute: Does the work. RunFailed, DataChanged and OSError, as of a full disk, give status 1, RunStopped 3, an
            interrupt 130; any other error is a defect of the program and keeps its traceback. If it gets an object with
            `StopSignals` as `stop`, these are noted from its first line to its last.
    """
    replace_unencodable()
    try:
        try:
            prepared = prepare()
        except (ValueError, TypeError, OSError, DataChanged) as error:
            print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
            return 2
        with getattr(prepared, 'stop', None) or contextlib.nullcontext():
            execute(prepared)
    except (RunFailed, DataChanged, OSError) as error:
        print(f'stopped: {" ".join(str(error).split())}', file=sys.stderr)
        return 1
    except RunStopped as error:
        if str(error):  # only one of several processes has a message
            print(f'interrupted: {" ".join(str(error).split())}', file=sys.stderr)
        return 3
    except KeyboardInterrupt as error:
        print(f'interrupted{": " * bool(str(error))}{error}', file=sys.stderr)
        return 130
    return 0
