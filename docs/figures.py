"""What the build makes for the pages: figures of activations, and tables and figures of docs/results/*.json."""
import json
import re
from pathlib import Path

import torch
from matplotlib.figure import Figure

from timm_paf import shape
from timm_paf.activations import ACTIVATIONS
from timm_paf.engine.sweep_page import sweep_sections
from timm_paf.engine.sweep_table import read_groups
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
