"""The pages of docs/reference: one for each public module, made from the names in its `__all__`."""
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import timm_paf

# A name that several modules export is described on the page of the first one.
MODULES = (
    'timm_paf', 'timm_paf.functional', 'timm_paf.shape', 'timm_paf.activations', 'timm_paf.kernels', 'timm_paf.models',
    'timm_paf.attacks', 'timm_paf.tasks', 'timm_paf.data', 'timm_paf.evaluation', 'timm_paf.evaluation.page',
    'timm_paf.engine', 'timm_paf.synthesis')
LINES = 'The public names of each module.\n\nThe settings of `TrainConfig`, `ValidateConfig`, `SweepConfig` and ' \
    '`SyntheticConfig` are the flags of the [commands](../command-line.md): `TrainConfig(batch_size=256)` is ' \
    '`--batch-size 256`.\n'


def public_module(name: str) -> ModuleType:
    """A module by its public name, which may be an attribute of the package such as timm_paf.shape."""
    parent, _, last = name.rpartition('.')
    return getattr(public_module(parent), last, None) or importlib.import_module(name) if parent else timm_paf


def escaped(text: str) -> str:
    """Text of a docstring in which |alpha| is an absolute value, not a reference; code stays as it is."""
    return re.sub(r'(``?[^`]*``?)|\|', lambda match: match[1] or r'\|', text)


def constants() -> dict[str, str]:
    """The comments '#:' of all constants of the package, by name."""
    found = {}
    for path in Path(timm_paf.__file__).parent.rglob('*.py'):
        text = path.read_text(encoding='utf-8')
        if '#:' in text:
            comments = ModuleAnalyzer.for_string(text, path.stem).find_attr_docs()
            found |= {name: ' '.join(lines).strip() for (scope, name), lines in comments.items() if not scope}
    return found


def names() -> Iterator[tuple[str, str, Any, str]]:
    """Module, name, object and full name of its description, for every public name."""
    homes: dict[int | str, str] = {id(public_module(module)): module for module in MODULES}
    for module in MODULES:
        for name in public_module(module).__all__:
            thing = getattr(public_module(module), name)
            known: int | str = id(thing) if is_code(thing) else name
            yield module, name, thing, homes.setdefault(known, f'{module}.{name}')


def table(rows: list[tuple[str, str, str]]) -> list[str]:
    """A table of links and one-line summaries."""
    lines = ['.. list-table::', '   :widths: 30 70', '   :class: names', '']
    for name, home, summary in rows:
        lines += [f'   * - :py:obj:`{name} <{home}>`', f'     - {escaped(summary)}']
    return [*lines, '']


def is_code(thing: Any) -> bool:
    """Whether a thing is described by its docstring, not by a comment."""
    return isinstance(thing, (type, ModuleType)) or inspect.isroutine(thing)


def summary(thing: Any, name: str, comments: dict[str, str]) -> str:
    """The first sentence of a description."""
    text = (inspect.getdoc(thing) or '').split('\n\n')[0] if is_code(thing) else comments.get(name, '')
    if not text:
        raise ValueError(f'{name} has no description; add a docstring, or for a constant a comment "#:" in its line.')
    first = re.split(r'(?<=[a-z)\]`|0-9]\.)\s+(?=[A-Z`])', ' '.join(text.split()))[0]
    return first


def description(thing: Any, home: str, comments: dict[str, str]) -> list[str]:
    """Directives that describe a name."""
    if isinstance(thing, type):
        public = {known for _, _, known, _ in names() if isinstance(known, type)}
        # members of bases that have no description of their own are described here
        skipped = sorted({base.__name__ for base in thing.__mro__[1:]
                          if base in public or not base.__module__.startswith('timm_paf')})
        kind = 'autoexception' if issubclass(thing, BaseException) else 'autoclass'
        lines = [f'.. {kind}:: {home}']
        if not issubclass(thing, timm_paf.engine.fields.Settings):
            lines += ['   :members:', f'   :inherited-members: {", ".join(skipped)}']
            if getattr(thing.__dict__.get('__call__'), '__doc__', None):
                lines += ['   :special-members: __call__']
        return [*lines, '']
    if is_code(thing):
        return [f'.. autofunction:: {home}', '']
    values = ', '.join(map(repr, thing)) if isinstance(thing, (dict, tuple)) else repr(thing)
    value = f'keys {values}' if isinstance(thing, dict) else values
    name = home.rpartition('.')[2]
    return [f'.. py:data:: {name}', f'   :value: {value}', '', f'   {escaped(comments[name])}', '']


def write_reference(folder: Path) -> dict[str, str]:
    """Write the pages; returns the full name of the description of each class and function, by the name of its code."""
    comments, everything = constants(), list(names())
    pages = {'index': ['# Reference', '', LINES, '```{toctree}', ':hidden:', '', *MODULES, '```', '']}
    for module in MODULES:
        own = [(name, thing, home) for where, name, thing, home in everything if where == module]
        rows = [(name, home, summary(thing, name, comments)) for name, thing, home in own]
        text = inspect.getdoc(public_module(module)) or ''
        body = [f'.. py:module:: {module}', '', escaped(text), '', *table(rows)]
        for _, thing, home in own:
            if home.rpartition('.')[0] == module and not isinstance(thing, ModuleType):
                body += description(thing, home, comments)
        pages[module] = [f'# {module}', '', '```{eval-rst}', *body, '```', '']
        pages['index'] += [f'## {module}', '', '```{eval-rst}', *table(rows), '```', '']
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.md'):
        if old.stem not in pages:
            old.unlink()
    for page, lines in pages.items():
        path, content = folder / f'{page}.md', '\n'.join(lines)
        if not path.exists() or path.read_text(encoding='utf-8') != content:  # else Sphinx reads the page again
            path.write_text(content, encoding='utf-8')
    return {f'{thing.__module__}.{thing.__qualname__}': home for _, _, thing, home in everything
            if hasattr(thing, '__qualname__')}
