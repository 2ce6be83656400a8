"""Report pages, rendered by templates/report.html.j2: the place for what a page says and how it looks.

Styles and images are inside the page; it has no scripts and loads nothing. The template escapes all text.
"""
import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from timm_paf.evaluation import plots

__all__ = ['Section', 'figure', 'image_uri', 'render']


@dataclass(frozen=True, kw_only=True)
class Section:
    """A further section of a page, with its parts in this order.

    Args:
        title: The heading.
        text: Paragraphs.
        figures: Plots from `figure`.
        header: Titles of the table's columns.
        rows: Rows of the table; None is an empty cell.
        columns: One letter per column: 's' short text, 't' long text, 'n' number, 'c' code.
        note: A paragraph in small print.
    """
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Markup] = ()
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    columns: str
    note: str = ''


def render(**content: Any) -> str:
    """The text of an HTML file.

    Args:
        content: Variables of the template: `title`, `subtitle`, `report` (a `RobustnessReport`) and `sections`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('timm_paf.evaluation'), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(image_uri=image_uri, settings=_settings)
    environment.globals.update(figure=figure, plots=plots)
    return environment.get_template('report.html.j2').render(content)


def figure(alt: str, plot: Callable[..., bytes], *arguments: Any) -> Markup:
    """A plot as HTML; a line with the reason if a package is not installed.

    Args:
        alt: Description of the plot, for screen readers.
        plot: Returns the bytes of a PNG file.
        arguments: Arguments of `plot`.
    """
    try:
        png = plot(*arguments)
    except ImportError as error:
        return Markup('<p class="soft">No figure: {}. The table has the same numbers.</p>').format(error)
    return Markup('<figure><img src="{}" alt="{}"></figure>').format(_data_uri(png), alt)


def image_uri(image: Tensor) -> str:
    """An image as the `src` of an HTML image.

    Args:
        image: (C, H, W) in [0, 1]; if C is not 1 or 3, the mean over channels is shown.
    """
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(stream, format='PNG')
    return _data_uri(stream.getvalue())


def _data_uri(png: bytes) -> str:
    return f'data:image/png;base64,{base64.b64encode(png).decode()}'


def _settings(details: Mapping[str, Any]) -> str:
    """Details of an attack in one line, its warnings first; results per component are only in report.json."""
    facts = [
        f'{name.replace("_", " ")}: {_plain(value)}' for name, value in details.items()
        if name not in ('runs', 'warnings') and value not in (None, [], {})]
    return '; '.join([*details.get('warnings', ()), *facts])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{name} {_plain(entry)}' for name, entry in value.items())
    if isinstance(value, list):
        return ', '.join(map(_plain, value))
    return f'{value:g}' if isinstance(value, float) else str(value)
