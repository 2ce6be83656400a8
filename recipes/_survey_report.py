"""The survey of timm's architectures as a page of Markdown."""
import platform
from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Any

import timm
import torch

import timm_paf

__all__ = ['OUTCOMES', 'markdown', 'versions']

# in the order of the table's columns
OUTCOMES = {
    'keyword': "`act_layer='{name}'` puts it at every place",
    'keyword in part': "`act_layer='{name}'` puts it at some places; the rest is left to conversion",
    'function': "a name is refused, `act_layer=timm_paf.shared('{name}')` builds",
    'function in part': 'the same at some places; the rest is left to conversion',
    'conversion': '`timm_paf.convert_activations` after building',
    'untouched': 'none of them: there is nothing to replace',
    'fails': 'cannot be built on the meta device as it is',
}
GATES = ('sigmoid', 'hardsigmoid', 'tanh', 'glu', 'hardtanh')


def versions() -> dict[str, str]:
    """Releases that the survey ran with."""
    return {
        'python': platform.python_version(), 'torch': torch.__version__.split('+')[0], 'timm': timm.__version__,
        'timm_paf': timm_paf.__version__}


def markdown(results: list[Any], *, activation: str, command: str) -> str:
    """The page: totals, a row for each family, and the models that differ from the rest of their family.

    Args:
        results: `ModelResult`s.
        activation: Name of the activation that was put.
        command: The command line that made it.
    """
    made = ', '.join(f'{name} {version}' for name, version in versions().items())
    counts = Counter(result.outcome for result in results)
    lines = [
        "# timm's architectures and parametric activations", '',
        f'`{command}`, {date.today().isoformat()}, {made}: {len(results)} models on the meta device.', '',
        '| way | models | what works |', '| --- | ---: | --- |']
    lines += [
        f'| {outcome} | {counts[outcome]} | {text.format(name=activation)} |' for outcome, text in OUTCOMES.items()]
    lines += [
        '', '"Places" is how many a conversion of the plain model replaces, from the fewest to the most in the family. '
        '"Still running" is what one forward pass of the converted models runs besides: functions called in '
        "a method's code, and in italics gates (squeeze-and-excitation, attention), which are left on purpose.", '',
        '## Families', '', '| family | models | ways | places | still running |', '| --- | ---: | --- | ---: | --- |']
    families: dict[str, list[Any]] = {}
    for result in results:
        families.setdefault(result.family, []).append(result)
    for family, members in sorted(families.items()):
        ways = Counter(result.outcome for result in members)
        shown = ', '.join(f'{way} {ways[way]}' if len(ways) > 1 else way for way in OUTCOMES if ways[way])
        places = [result.convert_places for result in members]
        span = str(min(places)) if min(places) == max(places) else f'{min(places)}–{max(places)}'
        lines.append(f'| {family} | {len(members)} | {shown} | {span} | {_running(members)} |')
    lines += _details(families)
    return '\n'.join(lines) + '\n'


def _running(members: list[Any]) -> str:
    kinds = sorted({kind for result in members for kind in result.running}, key=lambda kind: (_is_gate(kind), kind))
    return ', '.join(f'*{kind}*' if _is_gate(kind) else kind for kind in kinds)


def _is_gate(kind: str) -> bool:
    return kind.split(' ')[0] in GATES


def _details(families: dict[str, list[Any]]) -> list[str]:
    lines = ['', '## Models that differ from the rest of their family', '']
    for family, members in sorted(families.items()):
        groups: dict[str, list[Any]] = {}
        for result in members:
            groups.setdefault(result.outcome, []).append(result)
        (common, _), *rest = sorted(groups.items(), key=lambda item: -len(item[1]))
        if rest:
            lines.append(f'- **{family}** (else: {common})')
            lines += [f'  - {outcome}: {_names(some)}' for outcome, some in rest]
    lines += ['', '## Why a name is refused', '']
    for family, members in sorted(families.items()):
        errors = Counter(result.keyword_error for result in members if result.keyword_error)
        lines += [f'- {family} ({count}): `{error}`' for error, count in errors.items()]
    untouched = [result for members in families.values() for result in members if result.outcome == 'untouched']
    if untouched:
        lines += ['', '## What runs where nothing can be replaced', '']
        lines += [f'- `{result.name}`: {_running([result]) or "nothing"}' for result in untouched]
    failed = [
        (result.name, error) for members in families.values() for result in members if result not in untouched
        for error in (result.error, result.convert_error, result.run_error and f'did not run: {result.run_error}')
        if error]
    if failed:
        lines += ['', '## Errors', '', *(f'- {name}: `{error}`' for name, error in failed)]
    return lines


def _names(results: Iterable[Any]) -> str:
    return ', '.join(f'`{result.name}`' for result in results)
