"""Figures of the report of a sweep; need matplotlib."""
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from timm_paf.activations import ACTIVATIONS
from timm_paf.engine.fields import assignments
from timm_paf.engine.sweep_table import ATTACKS, PROPERTIES, Group
from timm_paf.evaluation.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# activation -> the activation without parameters that it is equal to at these values
EQUAL = {
    'prelu0': ('relu', {'alpha': 0.}), 'preluplus': ('relu', {'alpha': 1.}), 'pelu': ('elu', {'alpha': 1.}),
    'peluplus': ('elu', {'alpha': 1.}), 'psilu': ('silu', {'alpha': 1.}), 'psoftplus': ('softplus', {'alpha': 1.}),
    'reblu': ('relu', {'alpha': 0.}), 'ssilu': ('silu', {'beta': 0.}), 'pssilu': ('silu', {'alpha': 1., 'beta': 0.})}

__all__ = ['fixed_groups', 'plot_groups', 'plot_parameters', 'plot_paths', 'plot_shape']


def _style(groups: Iterable[Group]) -> Callable[[str], dict[str, Any]]:
    """Colour and marker of each activation, and its label for the first who asks."""
    names = sorted({group.activation for group in groups})
    styles = dict(zip(names, zip(cycle((*COLOURS, '#000000')), cycle('os^DvP*')), strict=False))
    labels = {name: name for name in names}
    return lambda name: dict(color=styles[name][0], marker=styles[name][1], label=labels.pop(name, None))


def fixed_groups(groups: Sequence[Group]) -> dict[str, tuple[str, dict[str, list[tuple[float, Group]]]]]:
    """Groups with fixed parameters: by activation, the parameter that varies, and by options its values in order.

    beta varies if only that does. The activation without parameters that is equal at a value, such as SiLU, is there.
    """
    by_activation: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.given and not group.learned:
            by_activation[group.activation].append(group)
    found = {}
    for activation, members in by_activation.items():
        names = list(ACTIVATIONS[activation].parameter_specs)
        varied = next((name for name in names if len({g.mean(name) for g in members}) > 1), names[0])
        lines: dict[str, list[tuple[float, Group]]] = defaultdict(list)
        for group in members:
            lines[group.option_text].append((group.mean(varied), group))
        equal, at = EQUAL.get(activation, ('', {}))
        if all(g.mean(name) == value for g in members for name, value in at.items() if name != varied):
            for group in groups:
                if group.activation == equal and group.option_text in lines:
                    lines[group.option_text].append((at[varied], group))
        for line in lines.values():
            line.sort(key=lambda item: item[0])
        found[activation] = varied, dict(lines)
    return found


def plot_groups(groups: Sequence[Group], robust: str, two: bool) -> 'Figure':
    """Runs as dots, one line per group; if `two`, the last checkpoint below the best."""
    drawn, (axes,) = new_figure(9, 0.9 + 0.24 * len(groups))
    for place, group in enumerate(groups):
        for checkpoint, colour, marker in (('last', COLOURS[1], 'x'), ('best', COLOURS[0], 'o'))[not two:]:
            values = list(group.values(robust, checkpoint).values())
            axes.plot(values, [place] * len(values), marker, color=colour, ms=5, alpha=0.8,
                      label=f'{checkpoint} checkpoint' if not place else None)
        axes.plot(group.mean(robust), place, '|', color='black', ms=12, label='mean, best' if not place else None)
    axes.set_yticks(range(len(groups)), [group.label(options=False) for group in groups], fontsize=8)
    axes.set(xlabel=f'{ATTACKS[robust]} accuracy, %', ylim=(len(groups) - 0.5, -0.5))
    drawn.legend(frameon=False, ncols=3, loc='outside upper center')
    return drawn


def plot_parameters(
        items: Mapping[str, tuple[str, Mapping[str, Sequence[tuple[float, Group]]]]], groups: Sequence[Group],
        robust: str) -> 'Figure':
    """Accuracy over fixed parameters, for up to two items of `fixed_groups`."""
    drawn, all_axes = new_figure(9, 3.4, panels=2)
    reference = [group.mean(robust) for group in groups if group.activation == 'relu']
    for axes, (activation, (varied, lines)) in zip(all_axes, items.items(), strict=False):
        for (label, line), colour, marker in zip(sorted(lines.items()), cycle(COLOURS), cycle('os^D')):
            for x, group in line:
                values = list(group.values(robust).values())
                axes.plot([x] * len(values), values, marker, color=colour, ms=4, alpha=0.5,
                          markerfacecolor=colour if group.given else 'white')
            axes.plot([x for x, _ in line], [g.mean(robust) for _, g in line], color=colour, label=label or None)
        if reference:
            axes.axhline(float(np.mean(reference)), color='0.4', linestyle='--', linewidth=1)
        axes.set(title=activation, xlabel=f'{varied}, fixed', ylabel=f'{ATTACKS[robust]} accuracy, %')
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    for axes in all_axes[len(items):]:
        axes.set_visible(False)
    return drawn


def plot_shape(groups: Sequence[Group], robust: str) -> 'Figure':
    """Accuracy of each group over its greatest curvature and over its mean output on negative inputs."""
    drawn, all_axes = new_figure(9, 4.2, panels=2)
    style = _style(groups)
    for axes, name in zip(all_axes, ('finite_curvature', 'negative_mean'), strict=True):
        for group in groups:
            filled: dict[str, Any] = {} if group.learned or not group.given else {'markerfacecolor': 'white'}
            axes.plot(group.mean(name), group.mean(robust), linestyle='', ms=6, **style(group.activation), **filled)
        axes.set(xlabel=PROPERTIES[name], ylabel=f'{ATTACKS[robust]} accuracy, %')
    labels = all_axes[0].get_legend_handles_labels()
    drawn.legend(*labels, frameon=False, ncols=6, loc='outside lower center', fontsize=8)
    return drawn


def plot_paths(groups: Sequence[Group]) -> 'Figure':
    """Paths of alpha and beta over the epochs of each learned run; epoch 0 is before training."""
    names = [name for name in ('alpha', 'beta') if any(group.values(name) for group in groups)] or ['alpha']
    drawn, all_axes = new_figure(4.5 * len(names), 3.8, panels=len(names))
    for axes, name in zip(all_axes, names, strict=True):
        style = _style(groups)
        for group in groups:
            if name not in ACTIVATIONS[group.activation].parameter_specs:
                continue
            start = getattr(ACTIVATIONS[group.activation](**assignments(tuple(group.given.split()), 'given')), name)
            for points in group.paths.values():
                path = [(0, float(start.detach())), *(
                    (epoch, alpha if name == 'alpha' else beta) for epoch, alpha, beta in points)]
                axes.plot(*zip(*path, strict=True), ms=3, linewidth=1, **style(group.activation))
        axes.locator_params(axis='x', integer=True)
        axes.set(xlabel='epoch', ylabel=name)
        axes.legend(frameon=False, fontsize=8)
    return drawn
