"""Settings as frozen dataclasses: each field is a flag, a key of a YAML file and an argument in Python."""
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = [
    'Settings', 'assignments', 'fields_by_group', 'flag', 'known_keys', 'range_in_words', 'read_yaml', 'setting',
    'settings_by_group']

GROUPS = (
    'run', 'data', 'synthetic images', 'augmentation', 'model', 'activation', 'attack', 'loss', 'optimizer', 'schedule',
    'EMA', 'speed and memory', 'measurement', 'RobustBench entry', 'checkpoints and logs')  # in the order of --help

T = TypeVar('T', bound='Settings')


def setting(
        default: Any, help: str, *, group: str = 'options', unset: str = '', choices: tuple[Any, ...] | None = None,
        metavar: str = '', least: float = -math.inf, most: float = math.inf, above: float = -math.inf,
        below: float = math.inf,
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: Its default value.
        help: Help text: what the value is, with its unit.
        group: Heading in --help.
        unset: For a default of None or nothing: what holds then.
        choices: Allowed values; None allows all.
        metavar: Name of the value in --help.
        least: Smallest allowed number, as `most` is the largest; `above` and `below` are not allowed themselves.
    """
    return dataclasses.field(default=default, metadata={
        'help': help, 'group': group, 'unset': unset, 'choices': choices, 'metavar': metavar,
        'bounds': (least, most, above, below)})


def settings_by_group(*groups: str) -> list[Callable[..., Any]]:
    """`setting` for each of these headings."""
    return [partial(setting, group=group) for group in groups]


def fields_by_group(cls: type) -> dict[str, list[dataclasses.Field]]:
    """The fields of a `Settings` class under their headings, in the order of `GROUPS`."""
    groups: dict[str, list[dataclasses.Field]] = {name: [] for name in GROUPS}
    for field in dataclasses.fields(cls):
        groups.setdefault(field.metadata['group'], []).append(field)
    return {name: fields for name, fields in groups.items() if fields}


def flag(name: str) -> str:
    """The flag of a field."""
    return '--' + name.replace('_', '-')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of settings: converts and checks every value, wherever it comes from.

    Raises:
        ValueError: If a value has the wrong type, is out of range, or is not one of the choices.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata['choices'] or ()
            if isinstance(value, bool) and 'yes' in choices:  # YAML reads the words yes and no as booleans
                value = 'yes' if value else 'no'
            value = _convert(value, hints[field.name], flag(field.name))
            _check(value, field.metadata, flag(field.name))
            object.__setattr__(self, field.name, value)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values: texts, numbers, booleans, None and lists of these."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_yaml(cls: type[T], path: str | Path, **changes: Any) -> T:
        """Settings from a file with lines 'key: value'; `changes` override the file.

        Raises:
            ValueError: If the file cannot be read, or holds an unknown key or a wrong value.
        """
        return cls(**{**read_yaml(Path(path), [field.name for field in dataclasses.fields(cls)]), **changes})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A value from Python, YAML or the command line in the type of its field."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        # the command line has no other word for a number that is not set; for a text, "none" may be a choice
        unset = value is None or (value == 'none' and inner in (int, float))
        return None if unset else _convert(value, inner, name)
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
    if value is None or isinstance(value, (bool, list, dict, tuple)):
        raise ValueError(f'{name} = {value!r}: expected a {hint.__name__}.')
    try:
        if hint is int and float(value) != int(float(value)):
            raise ValueError
        if hint is float and value in ('.inf', '-.inf', '.nan'):  # as YAML writes them
            return float(value.replace('.', ''))
        return int(float(value)) if hint is int else hint(value)
    except (TypeError, ValueError, OverflowError):
        expected = {int: 'a whole number', float: 'a number'}.get(hint, hint.__name__)
        raise ValueError(f'{name} = {value!r}: expected {expected}.') from None


def _check(value: Any, metadata: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if a value is out of range or not one of the choices."""
    choices = metadata['choices']
    for item in value if isinstance(value, tuple) else (value,):
        if choices and item is not None and item not in choices:
            allowed = ', '.join(str(choice) for choice in choices if choice)
            raise ValueError(f'{name} = {item!r}: expected one of {allowed}.')
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            least, most, above, below = metadata['bounds']
            if not (least <= item <= most and above < item < below):  # NaN is out of every range
                raise ValueError(f'{name} = {item}: expected {range_in_words(least, most, above, below)}.')


def range_in_words(least: float, most: float, above: float, below: float) -> str:
    """The range of a setting in words, from its bounds."""
    low = f'of {least:g} or more' if least > -math.inf else f'above {above:g}' if above > -math.inf else ''
    high = f'at most {most:.10g}' if most < math.inf else f'below {below:g}' if below < math.inf else ''
    return 'a number ' + ' and '.join(filter(None, (low, high))) if low or high else 'a number'


class _TextLoader(yaml.SafeLoader):
    """YAML in which numbers and dates stay texts: a setting of type text keeps 010 and 1.10 as they are written."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(':', 1)[-1] not in ('int', 'float', 'timestamp')]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class _ValueLoader(_TextLoader):
    """YAML with the numbers of Python: 1e-1 is a number, 010 and 1:30 are not, and None is null."""


for _tag, _pattern, _first in (
        ('int', r'[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)', '-+0123456789'), ('null', 'None', 'N'),
        ('float', r'[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))',
         '-+0123456789.')):
    _ValueLoader.add_implicit_resolver(f'tag:yaml.org,2002:{_tag}', re.compile(f'(?:{_pattern})$'), list(_first))


def known_keys(content: Mapping[Any, Any], known: typing.Collection[str], label: str) -> dict[str, Any]:
    """A mapping with '_' for '-' in its keys; ValueError, with `label` in front, for a key that is not in `known`."""
    settings = {}
    for key, value in content.items():
        name = str(key).replace('-', '_')
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean {near[0]}?' if near else '--help lists the settings.'
            raise ValueError(f'{label}: unknown key {key!r}; {hint}')
        settings[name] = value
    return settings


def read_yaml(path: Path, known: typing.Collection[str]) -> dict[str, Any]:
    """The settings in a YAML file, not yet converted; ValueError for an unknown key or a file that cannot be read."""
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _TextLoader)
    except FileNotFoundError:
        raise ValueError(f'config {path}: there is no such file.') from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'config {path} cannot be read: {" ".join(str(error).split())[:200]}') from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f'config {path} holds a {type(content).__name__}; expected lines "key: value".')
    return known_keys(content, known, f'config {path}')


def assignments(items: tuple[str, ...], name: str) -> dict[str, Any]:
    """A dictionary from texts NAME=VALUE, with values read as YAML; ValueError names the flag `name`."""
    values = {}
    for item in items:
        key, equals, text = item.partition('=')
        if not equals or not key.isidentifier():
            raise ValueError(f'{name} = {item!r}: expected NAME=VALUE.')
        try:
            values[key] = yaml.load(text, _ValueLoader)
        except yaml.YAMLError:
            raise ValueError(f'{name} = {item!r}: the value cannot be read; expected a value as in YAML.') from None
    return values
