"""Report pages, rendered by templates/report.html.j2: the place for what a page says and how it looks.

Styles and images are inside the page; it has no scripts and loads nothing. The template escapes all text.
"""
import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from timm_paf.evaluation import plots
from timm_paf.evaluation.accuracy import Accuracy
from timm_paf.evaluation.corruptions import CorruptionReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['Section', 'figure', 'image_uri', 'number', 'render']


@dataclass(frozen=True, kw_only=True)
class Section:
    """A further section of a page, with its parts in this order."""
    title: str  #: The heading.
    folded: bool = False  #: Whether to place it at the end and show it only when the reader opens it.
    text: Sequence[str] = ()  #: Paragraphs.
    figures: Sequence[Markup] = ()  #: Plots from `figure`.
    header: Sequence[str] = ()  #: Titles of the table's columns.
    #: Rows, with cells for `number`. Without rows there is no table.
    rows: Sequence[Sequence[str | int | float | None]] = ()
    #: One letter per column, 's' short text, 'l' short text in one line, 't' long text, 'n' number, 'c' code.
    columns: str = ''
    note: str = ''  #: A paragraph in small print.


def render(**content: Any) -> str:
    """The text of an HTML file, from `title`, `subtitle`, `report` (a `RobustnessReport` or None) and `sections`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('timm_paf.evaluation'), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        image_uri=image_uri, settings=_settings, corruption_rows=_corruption_rows, number=number)
    environment.globals.update(figure=figure, plots=plots, cells=_cells)
    return environment.get_template('report.html.j2').render(content)


def number(value: str | float | None) -> str:
    """A cell of a table: a float with four digits, nothing for None."""
    if isinstance(value, float):
        return f'{value:#.4g}'.removesuffix('.')
    return '' if value is None else str(value)


def figure(alt: str, plot: Callable[..., 'Figure | Sequence[Figure]'], *arguments: Any, **more: Any) -> Markup:
    """The figures of `plot(*arguments, **more)` as HTML, described by `alt`; the reason if a package is missing."""
    try:
        drawn = plot(*arguments, **more)
    except ImportError as error:
        return Markup('<p class="soft">No figure: {}. The table has the same numbers.</p>').format(error)
    return Markup('<div class="plots">{}</div>').format(Markup().join(
        Markup('<figure class="{}" role="img" aria-label="{}">{}</figure>').format(
            'plot wide' if one.get_figwidth() > 5 else 'plot', alt, Markup(_svg(one)))
        for one in (drawn if isinstance(drawn, Sequence) else [drawn])))


def _svg(drawn: 'Figure') -> str:
    """A figure as an <svg> element with the colours of the page; equal figures give equal text."""
    from matplotlib import rc_context
    stream = io.StringIO()
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'timm_paf'}):
        drawn.savefig(stream, format='svg', transparent=True, metadata={'Date': None})
    text = re.sub(r'<metadata>.*?</metadata>|(?<=<g) id="[^"]*"', '', stream.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<svg[^>]*(?= viewBox)', '<svg', text[text.index('<svg'):], count=1)
    for colour, meaning in (('#000000', 'text'), ('#ebebeb', 'line'), ('#ffffff', 'back'), ('#0072b2', 'accent')):
        text = re.sub(f'(fill|stroke): {colour}', rf'\1: var(--{meaning})', text)
    return text


def image_uri(image: Tensor) -> str:
    """The `src` of an HTML image, from (C, H, W) in [0, 1]; if C is not 1 or 3, from the mean over channels."""
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels, stream = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8), io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(stream, format='PNG')
    return _data_uri(stream)


def _data_uri(png: io.BytesIO) -> str:
    return f'data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}'


def _cells(accuracy: Accuracy) -> list[str]:
    cells = f'{accuracy.percent:.1f} %', accuracy.interval_text, f'{accuracy.correct} / {accuracy.total}'
    return [re.sub(' (?=[%/])|(?<=/) ', '\N{NO-BREAK SPACE}', cell) for cell in cells]


def _corruption_rows(report: CorruptionReport) -> list[list[str]]:
    rows = {name.replace('_', ' '): (*cells, report.of(name)) for name, cells in report.accuracies.items()}
    rows['mean'] = (*map(report.at_severity, range(1, 6)), report.mean)
    return [[name, *(f'{cell.percent:.1f}' for cell in cells)] for name, cells in rows.items()]


def _settings(details: Mapping[str, Any]) -> str:
    """Details of an attack in one line, its warnings first; results per component are only in report.json."""
    def plain(value: Any) -> str:
        if isinstance(value, dict):
            return ', '.join(f'{name} {plain(entry)}' for name, entry in value.items())
        if isinstance(value, list):
            return ', '.join(map(plain, value))
        return f'{value:g}' if isinstance(value, float) else str(value)

    return '; '.join([*details.get('warnings', ()), *(
        f'{name.replace("_", " ")}: {plain(value)}' for name, value in details.items()
        if name not in ('runs', 'warnings') and value not in (None, [], {}))])
