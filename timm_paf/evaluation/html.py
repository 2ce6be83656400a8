"""A small builder of self-contained report pages: styles inside, pictures as data URIs, no scripts.

    page('Training', [section('Losses', figure(png, 'loss over epochs'), table(rows, header=('epoch', 'loss')))])

Text is escaped wherever it comes from; what the functions here return is `Html` and is not escaped again.
"""
import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

__all__ = [
    'Html', 'Picture', 'badge', 'drawn', 'figure', 'image_png', 'page', 'paragraph', 'pictures', 'section', 'table',
    'tiles',
]


class Html(str):
    """Markup that needs no escaping any more."""


Content = str | Html | int | float | None


class Picture(NamedTuple):
    """A picture with text under it.

    Attributes:
        png: The picture.
        alt: What it shows, for those who do not see it.
        caption: Text under it.
        mark: 'good', 'bad' or '' for the colour of the caption.
    """
    png: bytes
    alt: str
    caption: str
    mark: str = ''


_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5a636d; --line: #d5dae0; --back: #fff; --card: #f5f7f9;
  --good: #14733a; --bad: #b3261e; --accent: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --soft: #a1abb5; --line: #3a424b; --back: #14171a;
  --card: #1e2328; --good: #6fd08f; --bad: #ff8a80; --accent: #7ab8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .82rem; overflow-wrap: anywhere; }
td.text { min-width: 13rem; }
.badge { display: inline-block; padding: 0 .5rem; border-radius: .7rem; border: 1px solid currentColor;
  font-size: .82rem; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .none { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; }
.bar { height: .35rem; border-radius: .2rem; background: var(--line); margin: .5rem 0; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
figure { margin: .8rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
.pictures { display: grid; gap: .9rem 1.4rem; } .group { display: grid; gap: .4rem; break-inside: avoid; }
.pictures figure { margin: 0; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; background: none; }
.pictures figcaption { line-height: 1.25; font-size: .82rem; }
@media screen and (max-width: 40rem) { .stacked thead { display: none; }
  .stacked, .stacked tbody, .stacked tr { display: block; }
  .stacked td { display: inline-block; border: 0; padding: .15rem .3rem; }
  .stacked td.text { display: block; min-width: 0; }
  .stacked tr { border-bottom: 1px solid var(--line); padding: .4rem 0; } }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --line: #bbb; --back: #fff; --card: #fff;
  --good: #14733a; --bad: #b3261e; } body { max-width: none; padding: 0; font-size: 11px; }
  .tile { border: 1px solid var(--line); } h2 { break-after: avoid; } tr, figure, .tile { break-inside: avoid; }
  .scroll { overflow: visible; } td.text { min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def _escaped(content: Content) -> str:
    if isinstance(content, Html):
        return str(content)
    return '' if content is None else html.escape(str(content))


def page(title: str, sections: Iterable[Html], *, subtitle: str = '') -> str:
    """A whole page.

    Args:
        title: Heading and title.
        sections: What `section` and its like made.
        subtitle: A line under the heading.

    Returns:
        The text of an HTML file.
    """
    below = f'<p class="soft">{_escaped(subtitle)}</p>\n' if subtitle else ''
    body = '\n'.join(_escaped(part) for part in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f'<body>\n<h1>{_escaped(title)}</h1>\n{below}{body}\n</body>\n</html>\n')


def section(heading: str, *parts: Content) -> Html:
    """A heading and what belongs under it; text becomes paragraphs."""
    body = '\n'.join(_escaped(part if isinstance(part, Html) else paragraph(str(part))) for part in parts if part)
    return Html(f'<section>\n<h2>{_escaped(heading)}</h2>\n{body}\n</section>')


def paragraph(text: Content, *, soft: bool = False) -> Html:
    """A paragraph; soft for remarks."""
    return Html(f'<p{" class=soft" if soft else ""}>{_escaped(text)}</p>')


def badge(text: str, mark: str = 'none') -> Html:
    """A word in a frame; mark is 'good', 'bad' or 'none'."""
    return Html(f'<span class="badge {_escaped(mark)}">{_escaped(text)}</span>')


def table(
        rows: Iterable[Sequence[Content]],
        *,
        header: Sequence[str],
        columns: str = '',
        caption: str = '',
        stacked: bool = False,
) -> Html:
    """A table that scrolls by itself where the page is too narrow.

    Args:
        rows: Cells; text is escaped, None is an empty cell.
        header: Titles of the columns.
        columns: One letter a column: t text that wraps, n number, c code; the rest is plain.
        caption: Text under the table.
        stacked: On a narrow page put the cells of a row under each other, for rows of sentences.

    Raises:
        ValueError: If a row has not as many cells as the header.
    """
    kinds = {'t': 'text', 'n': 'number', 'c': 'code'}
    classes = [f' class="{kinds[c]}"' if c in kinds else '' for c in columns.ljust(len(header))]
    head = ''.join(f'<th scope="col"{c}>{_escaped(title)}</th>' for title, c in zip(header, classes, strict=False))
    lines = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f'a row of {len(row)} cells under {len(header)} titles: expected as many.')
        lines.append('<tr>' + ''.join(f'<td{c}>{_escaped(cell)}</td>' for cell, c in zip(row, classes, strict=False))
                     + '</tr>')
    below = f'<caption style="caption-side: bottom; text-align: left">{_escaped(caption)}</caption>' if caption else ''
    body = '\n'.join(lines)
    style = ' class="stacked"' if stacked else ''
    return Html(
        f'<div class="scroll"><table{style}>{below}\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody></table></div>')


def tiles(entries: Iterable[tuple[str, float, str]]) -> Html:
    """Large numbers side by side.

    Args:
        entries: For each a title, a share in [0, 1], and text under it.
    """
    return Html('<div class="tiles">\n' + '\n'.join(
        f'<div class="tile"><span class="soft">{_escaped(title)}</span><b>{100 * share:.1f} %</b>'
        f'<div class="bar"><i style="width: {100 * share:.2f}%"></i></div>'
        f'<span class="soft">{_escaped(text)}</span></div>'
        for title, share, text in entries) + '\n</div>')


def figure(png: bytes, alt: str, caption: str = '') -> Html:
    """A picture of any size, no wider than the page.

    Args:
        png: Bytes of a PNG file.
        alt: What it shows, for those who do not see it.
        caption: Text under it.
    """
    below = f'<figcaption>{_escaped(caption)}</figcaption>' if caption else ''
    return Html(f'<figure>{_img(png, alt)}{below}</figure>')


def drawn(draw: Callable[[], bytes], alt: str) -> Html:
    """The figure that a function draws, or a line where it cannot for want of a package.

    Args:
        draw: Gives the bytes of a PNG file; raises ImportError if it needs what is not installed.
        alt: What it shows, for those who do not see it.
    """
    try:
        return figure(draw(), alt)
    except ImportError as error:
        return paragraph(f'No figure: {error}. The table holds the same numbers.', soft=True)


def pictures(shown: Iterable[Picture], *, together: int = 1) -> Html:
    """A grid of small pictures; pixels stay pixels when they are enlarged.

    Args:
        shown: The pictures in order.
        together: So many that follow each other stay side by side, as an original and what was made of it.
    """
    figures = [
        f'<figure>{_img(p.png, p.alt)}<figcaption{f" class={p.mark}" if p.mark in ("good", "bad") else ""}>'
        f'{_escaped(p.caption)}</figcaption></figure>' for p in shown]
    groups = [''.join(figures[first:first + together]) for first in range(0, len(figures), together)]
    style = f'grid-template-columns: repeat(auto-fill, minmax({6.2 * together:.1f}rem, 1fr))'
    inner = f'grid-template-columns: repeat({together}, 1fr)'
    body = '\n'.join(f'<div class="group" style="{inner}">{group}</div>' for group in groups)
    return Html(f'<div class="pictures" style="{style}">\n{body}\n</div>')


def image_png(image: Tensor) -> bytes:
    """A PNG file of an image.

    Args:
        image: (C, H, W) in [0, 1]; one or three channels are shown as they are, of others the mean.
    """
    if image.shape[0] not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(stream, format='PNG')
    return stream.getvalue()


def _img(png: bytes, alt: str) -> str:
    if not png.startswith(b'\x89PNG\r\n\x1a\n'):
        raise ValueError(f'the picture begins with {bytes(png[:8])!r}: expected the bytes of a PNG file.')
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{_escaped(alt)}">'
