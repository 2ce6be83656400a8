"""Settings of a recipe: a frozen dataclass read from command line and YAML, and mistakes told in one line."""
import argparse
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml

Config = TypeVar('Config')
Prepared = TypeVar('Prepared')


class RunFailed(Exception):
    """A run that started and cannot go on: exit status 1."""


class RunStopped(Exception):
    """A run that was asked to stop and can go on later: exit status 3."""


def setting(default: Any, help: str, *, choices: tuple | None = None) -> Any:
    """A field of a settings class with the text that --help shows."""
    return dataclasses.field(default=default, metadata={'help': help, 'choices': choices})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A value from YAML or the command line in the type of its field."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        # a number that is not set has no other spelling on the command line; of text, "none" may be a choice
        unset = value is None or (value == 'none' and inner[0] in (int, float))
        return None if unset else _convert(value, inner[0], name)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (str, int, float)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'{name} = {value!r}: expected a list.')
        return tuple(_convert(item, typing.get_args(hint)[0], name) for item in value)
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f'{name} = {value!r}: expected true or false.')
        return value
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError(f'{name} = {value!r}: expected a {hint.__name__}.')
    try:
        if hint is int and float(value) != int(float(value)):
            raise ValueError
        return int(float(value)) if hint is int else hint(value)
    except (TypeError, ValueError, OverflowError):
        expected = {int: 'a whole number', float: 'a number'}.get(hint, hint.__name__)
        raise ValueError(f'{name} = {value!r}: expected {expected}.') from None


def _read_yaml(path: Path, known: dict[str, Any]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f'config {path}: there is no such file.') from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'config {path} cannot be read: {" ".join(str(error).split())[:200]}') from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f'config {path} holds a {type(content).__name__}; expected "key: value" lines.')
    settings = {}
    for key, value in content.items():
        name = str(key).replace('-', '_')
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean {near[0]}?' if near else 'see --help for the settings.'
            raise ValueError(f'config {path}: unknown key {key!r}; {hint}')
        settings[name] = value
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        near = ''
        if message.startswith('unrecognized arguments: --'):
            flag = message.split()[2].split('=')[0]
            matches = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            near = f' (did you mean {matches[0]}?)' if matches else ''
        raise ValueError(message + near)


def parse_config(
        cls: type[Config],
        argv: list[str] | None,
        *,
        description: str,
        default_config: Callable[[], Path] | None = None,
        base: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
) -> Config:
    """Read settings: command line before YAML before the defaults of the class.

    Args:
        cls: Frozen dataclass whose fields are made by `setting`.
        argv: Arguments; None for the process's own.
        description: First line of --help.
        default_config: The YAML file that is read when `--config` names none.
        base: Called with the flags given, without --config; may return settings to take in place of that YAML file.

    Raises:
        ValueError: If a key, flag or value is not as expected.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if default_config is not None:
        parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with settings; flags go before it')
    for name, field in fields.items():
        flag = '--' + name.replace('_', '-')
        hint = hints[name]
        options: dict[str, Any] = {'help': f'{field.metadata["help"]} (default: {field.default})'.replace('%', '%%')}
        if hint is bool or bool in typing.get_args(hint):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        many = typing.get_origin(hint) is tuple
        parser.add_argument(flag, nargs='*' if many else None, metavar=name.upper(), **options)
    given = vars(parser.parse_args(argv))
    path = given.pop('config', None)
    values: dict[str, Any] = {}
    settings = base(given) if base is not None and path is None else None
    if settings is not None:
        values = {name: value for name, value in settings.items() if name in fields}
    elif default_config is not None:
        values = _read_yaml(Path(path) if path else default_config(), fields)
    values.update(given)
    for name, value in values.items():
        flag = '--' + name.replace('_', '-')
        values[name] = _convert(value, hints[name], flag)
        choices = fields[name].metadata['choices']
        if choices and values[name] is not None and values[name] not in choices:
            raise ValueError(f'{flag} = {value!r}: expected one of {", ".join(map(str, choices))}.')
    return cls(**values)


def assignments(items: tuple[str, ...], flag: str) -> dict[str, Any]:
    """A dictionary from texts NAME=VALUE; values are read as YAML reads them.

    Raises:
        ValueError: If a text is not of that form.
    """
    values = {}
    for item in items:
        name, equals, text = item.partition('=')
        if not equals or not name.isidentifier():
            raise ValueError(f'{flag} = {item!r}: expected NAME=VALUE.')
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f'{flag} = {item!r}: the value cannot be read; expected one as in YAML.') from None
    return values


def run(prepare: Callable[[], Prepared], execute: Callable[[Prepared], None]) -> int:
    """Run a recipe in two parts, so that mistakes are found before anything is written.

    Args:
        prepare: Reads settings, opens files, builds what is needed; its errors are the user's to mend.
        execute: Does the work; it raises RunFailed where the work cannot go on. Anything else is a defect of the
            program and keeps its traceback.

    Returns:
        0, 1 for a run that failed, 2 for settings or files that are not as expected, 3 for one that was asked to stop
        and can go on, 130 for an interrupt.
    """
    try:
        try:
            prepared = prepare()
        except (ValueError, TypeError, OSError) as error:
            print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
            return 2
        execute(prepared)
    except RunFailed as error:
        print(f'stopped: {" ".join(str(error).split())}', file=sys.stderr)
        return 1
    except RunStopped as error:
        if str(error):  # of several processes one speaks
            print(f'interrupted: {" ".join(str(error).split())}', file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0
