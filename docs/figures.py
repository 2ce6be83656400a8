"""What the build makes for the pages: figures of activations, and tables and figures of docs/results/*.json.

    python docs/figures.py      draws docs/_static/digits.svg and prints the table of the README
"""
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from timm_paf import shape
from timm_paf.activations import ACTIVATIONS
from timm_paf.engine.sweep_page import sweep_sections
from timm_paf.engine.sweep_table import ATTACKS, Group, read_groups
from timm_paf.evaluation.page import number

# page -> activations to draw: the initial value, one that training goes to or passes, and what it extends
FIGURES = {
    'prelu': [('prelu0', {}), ('prelu0', dict(alpha=-0.3)), ('preluplus', dict(alpha=0.5))],
    'pelu': [('pelu', {}), ('pelu', dict(alpha=-0.5)), ('peluplus', dict(alpha=0.5))],
    'psilu': [('psilu', {}), ('psilu', dict(alpha=3.)), ('psilu', dict(alpha=0.3))],
    'psoftplus': [('psoftplus', {}), ('psoftplus', dict(alpha=3.6)), ('psoftplus', dict(alpha=0.5))],
    'reblu': [('reblu', {}), ('reblu', dict(alpha=1.)), ('reblu', dict(alpha=-0.5))],
    'pssilu': [('pssilu', {}), ('ssilu', {}), ('pssilu', dict(alpha=2.4, beta=0.1))],
    'shape': [('prelu0', {}), ('psilu', {}), ('psoftplus', {}), ('pssilu', dict(alpha=2.4, beta=0.3))],
}

# activation -> other values of its parameters, drawn thin around the curve that it starts from
SMALL = {
    'prelu0': [dict(alpha=-0.3), dict(alpha=0.3)], 'preluplus': [dict(alpha=0.5), dict(alpha=1.5)],
    'pelu': [dict(alpha=-0.5), dict(alpha=2.)], 'peluplus': [dict(alpha=0.5), dict(alpha=1.5)],
    'psilu': [dict(alpha=0.3), dict(alpha=3.)], 'psoftplus': [dict(alpha=0.5), dict(alpha=3.)],
    'reblu': [dict(alpha=-0.5), dict(alpha=1.)], 'ssilu': [dict(beta=0.1), dict(beta=0.5)],
    'pssilu_fixed': [dict(alpha=0.5), dict(alpha=3.)], 'pssilu': [dict(alpha=2.4, beta=0.1), dict(alpha=1., beta=0.4)],
}


GREY = '#808890'  # can be read on white and on black


def draw_small(name: str) -> Figure:
    """Draw an activation for a table, in colours that can be read on white and on black."""
    figure = Figure(figsize=(1.6, 1.15), layout='constrained')
    axes, x = figure.subplots(), torch.linspace(-4, 4, 401)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.axhline(0, color='#888888', linewidth=0.8)
    axes.axvline(0, color='#888888', linewidth=0.8)
    for values, color, width in [*((v, '#9aa5b1', 1.2) for v in SMALL[name]), ({}, '#2f81f7', 2.4)]:
        axes.plot(x, ACTIVATIONS[name](**values)(x).detach(), color=color, linewidth=width)
    axes.set(xlim=(-4, 4), ylim=(-1.5, 3), xticks=[], yticks=[])
    return figure


def draw_digits(groups: Sequence[Group]) -> Figure:
    """Draw the figure of the README: what adversarial training does to accuracy, and training to the activation.

    Args:
        groups: Those of sweep_digits_full.
    """
    def find(activation: str, task: str | None = None) -> Group:
        return next(g for g in groups if g.activation == activation and dict(g.options).get('task') == task)

    rows = {'ReLU, ordinary training': find('relu', 'plain'), 'ReLU, adversarial training': find('relu'),
            'PSSiLU, adversarial training': find('pssilu')}
    figure = Figure(figsize=(9, 2.9), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for n, (label, group) in enumerate(rows.items()):
        for place, attack in enumerate(ATTACKS):
            values, x = list(group.values(attack).values()), place + 0.27 * (n - 1)
            left.bar(x, sum(values) / len(values), 0.25, color=('#9aa5b1', '#2f81f7', '#e0703a')[n],
                     label=None if place else label)
            left.plot([x] * len(values), values, '.', color=GREY, markersize=4)
    left.set_xticks(range(3), ['no attack', 'PGD', 'AutoAttack'])
    left.set(ylabel='accuracy, %', ylim=(0, 100), title='digits, Linf radius 0.2')
    figure.legend(
        *left.get_legend_handles_labels(), loc='outside lower center', ncols=3, frameon=False, labelcolor=GREY)
    x, alpha = torch.linspace(-4, 4, 401), find('pssilu').mean('alpha')
    for value, color in (1., '#9aa5b1'), (alpha, '#e0703a'):
        right.plot(x, ACTIVATIONS['pssilu'](alpha=value)(x).detach(), color=color, linewidth=2.2,
                   label=f'alpha {value:.2f}, {"after" if value == alpha else "before"} training')
    right.set(title='the activation that is learned', xlim=(-4, 4), ylim=(-0.6, 3))
    right.legend(frameon=False, loc='upper left', labelcolor=GREY)
    for axes in left, right:
        axes.title.set_color(GREY)
        axes.yaxis.label.set_color(GREY)
        axes.tick_params(colors=GREY)
        axes.spines[:].set_color(GREY)
        axes.spines[['top', 'right']].set_visible(False)
    return figure


def draw_figures(folder: Path) -> None:
    """Write one SVG for each page and one for each activation, and the table of the page on shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SMALL:
        draw_small(name).savefig(folder / f'small_{name}.svg', metadata={'Date': None}, transparent=True)
    for page, activations in FIGURES.items():
        figure = shape.plot([ACTIVATIONS[name](**values) for name, values in activations])
        figure.savefig(folder / f'{page}.svg', metadata={'Date': None})
    text = str(shape.describe('pssilu', alpha=2.4, beta=0.3))
    (folder / 'describe.txt').write_text('\n'.join(line.rstrip() for line in text.splitlines()) + '\n')


def write_results(results: Path, folder: Path) -> None:
    """Write each section of the report of each RESULTS/NAME.json as FOLDER/NAME/title-of-the-section.md."""
    for file in results.glob('*.json'):
        content = json.loads(file.read_text())
        pages = folder / file.stem
        pages.mkdir(parents=True, exist_ok=True)
        for section in sweep_sections(read_groups(content)):
            line = ['---:' if kind == 'n' else '---' for kind in section.columns]
            rows = [section.header, line, *section.rows] if section.rows else []
            table = [f'| {" | ".join(map(number, row))} |' for row in rows]
            figures = [re.sub(r'\n\s*\n', '\n', text) for text in section.figures]  # a blank line would end the HTML
            text = '\n\n'.join([*section.text, *figures, '\n'.join(table), section.note])
            (pages / f'{re.sub("[^a-z0-9.]+", "-", section.title.lower()).strip("-")}.md').write_text(text + '\n')
        (pages / 'runs.md').write_text(
            f'{content["runs"]} runs, which took {content["seconds"] / 3600:.1f} hours if added up, with '
            f'{content["threads"]} thread each; {content["machine"]}, {content["date"]}; ' + ', '.join(
                f'{name} {version}' for name, version in content['versions'].items()) + '.\n')


def readme_table(groups: Sequence[Group]) -> str:
    """The table of the README: means and standard deviations over the seeds of each group."""
    first = groups[0]
    images = [f'{first.fact(f"{attack}_images"):.0f}' for attack in ATTACKS]
    lines = [f'| WRN-10-2 with | clean ({images[0]}) | PGD-20 ({images[1]}) | AutoAttack ({images[2]}) | alpha |',
             '| --- | ---: | ---: | ---: | ---: |']
    names = {'relu': 'ReLU', 'silu': 'SiLU', 'psoftplus': 'PSoftplus', 'pssilu': 'PSSiLU'}
    for group in sorted(groups, key=lambda group: (bool(group.options), [*names].index(group.activation))):
        name = names[group.activation]
        cells = [list(group.values(attack).values()) for attack in ATTACKS]
        alpha = f'{group.mean("alpha"):.2f}' if group.learned else ''
        lines.append(' | '.join((
            f'| {name}{", no adversarial training" if group.options else ""}',
            *(f'{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}' for values in cells), f'{alpha} |')))
    return '\n'.join(lines)


if __name__ == '__main__':
    docs = Path(__file__).parent
    digits = read_groups(json.loads((docs / 'results' / 'sweep_digits_full.json').read_text()))
    draw_digits(digits).savefig(docs / '_static' / 'digits.svg', metadata={'Date': None}, transparent=True)
    print(readme_table(digits))
