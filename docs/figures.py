"""The figures of the pages on activations, drawn by timm_paf.shape.plot."""
from pathlib import Path

from timm_paf import shape
from timm_paf.activations import ACTIVATIONS

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
