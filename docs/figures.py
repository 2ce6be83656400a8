"""What the build makes for the pages: figures of activations, and tables and figures of docs/results/*.json."""
import json
import re
from pathlib import Path

from timm_paf import shape
from timm_paf.activations import ACTIVATIONS
from timm_paf.engine.sweep_page import sweep_sections
from timm_paf.engine.sweep_table import read_groups

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


def draw_figures(folder: Path) -> None:
    """Write one SVG for each page, and the table of the page on shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for page, activations in FIGURES.items():
        figure = shape.plot([ACTIVATIONS[name](**values) for name, values in activations])
        figure.savefig(folder / f'{page}.svg', metadata={'Date': None})
    text = str(shape.describe('pssilu', alpha=2.4, beta=0.3))
    (folder / 'describe.txt').write_text('\n'.join(line.rstrip() for line in text.splitlines()) + '\n')


def write_results(folder: Path) -> None:
    """Write each section of a sweep's report as FOLDER/NAME-of-the-json/title-of-the-section.md."""
    for file in Path(__file__).parent.glob('results/*.json'):
        content = json.loads(file.read_text())
        pages = folder / file.stem
        pages.mkdir(parents=True, exist_ok=True)
        for section in sweep_sections(read_groups(content)):
            lines = [cell for cells in (section.header, ['---'] * len(section.header), *section.rows) for cell in [
                f'| {" | ".join("" if cell is None else str(cell) for cell in cells)} |']] if section.rows else []
            text = '\n\n'.join([*section.text, *map(str, section.figures), '\n'.join(lines), section.note])
            (pages / f'{re.sub("[^a-z0-9.]+", "-", section.title.lower())}.md').write_text(text + '\n')
        (pages / 'runs.md').write_text(
            f'{content["runs"]} runs, which took {content["seconds"] / 3600:.1f} hours if added up, with '
            f'{content["threads"]} thread each; {content["machine"]}, {content["date"]}; ' + ', '.join(
                f'{name} {version}' for name, version in content['versions'].items()) + '.\n')
