"""One self-contained HTML file per run: no outside resource, no script, below 5 MB.

A page is a list of sections; a section is a title and a function that renders its body,
given how large its pictures may be. Whatever the caller passes is text and is escaped.
"""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom import files
from jaxanom.errors import UserError
from jaxanom.report import figures, style, tables

MAX_BYTES = 5_000_000
PICTURE_SIDES = (384, 288, 224, 160, 112)
_EXACT_SIDE = 96


class Section(NamedTuple):
    """A heading and what stands below it; `body`: longer picture side -> HTML."""

    title: str
    body: Callable[[int], str]


class PictureRow(NamedTuple):
    """Pictures beside one label.

    Attributes:
      label: what the row shows ("hazelnut, crack").
      images: one a column, [H, W, 3] or [H, W]; None leaves a gap.
      note: smaller, below the label ("image score 0.93").
    """

    label: str
    images: Sequence[np.ndarray | None]
    note: str = ""


def write(
    path: Path,
    title: str,
    sections: Sequence[Section],
    subtitle: str = "",
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Writes the page; a reader sees the old file or the new one, never a part.

    Pictures are reduced step by step until the page fits; the page then says so.

    Args:
      path: The HTML file; folders are made.
      title: Heading of the page.
      sections: in reading order.
      subtitle: one line below the title.
      max_bytes: size that the file stays below.

    Returns:
      The path.

    Raises:
      UserError: too large even with the smallest pictures.
    """
    path = Path(path)
    for side in PICTURE_SIDES:
        # Names of files need not be UTF-8: Python keeps their bytes as surrogates.
        content = render(title, sections, subtitle, side).encode(
            errors="backslashreplace"
        )
        if len(content) < max_bytes:
            break
    else:
        raise UserError(
            f"the page has {len(content)} bytes with pictures of {side} pixels, the "
            f"limit is {max_bytes}; pass fewer rows of pictures"
        )
    with files.replacing(path) as building:
        building.write_bytes(content)
    return path


def render(
    title: str,
    sections: Sequence[Section],
    subtitle: str = "",
    side: int = PICTURE_SIDES[0],
) -> str:
    """Returns the page as HTML, pictures at most `side` pixels wide or high."""
    entries = "".join(
        f'<li><a href="#section-{number}">{_text(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    bodies = "\n".join(
        f'<section id="section-{number}"><h2>{_text(section.title)}</h2>\n'
        f"{section.body(side)}</section>"
        for number, section in enumerate(sections, start=1)
    )
    reduced = (
        f"<p>Pictures are at most {side} pixels wide or high here, so that the page "
        "stays small.</p>"
        if side != PICTURE_SIDES[0]
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{style.CSS}</style>
</head>
<body>
<header><h1>{_text(title)}</h1>{_paragraph(subtitle)}</header>
<nav aria-label="Contents"><ul>{entries}</ul></nav>
<main>
{bodies}
</main>
<footer><p>Written by jaxanom. This file needs no other file.</p>{reduced}</footer>
</body>
</html>
"""


def text(title: str, *paragraphs: str) -> Section:
    """A section of plain paragraphs."""
    return Section(title, lambda side: "".join(map(_paragraph, paragraphs)))


def facts(title: str, values: Mapping[str, tables.Cell], caption: str = "") -> Section:
    """A section of key figures, each with a short name."""
    items = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(tables.format_cell(value))}</dd></div>"
        for name, value in values.items()
    )
    note = f'<p class="note">{_text(caption)}</p>' if caption else ""
    return Section(title, lambda side: f'<dl class="facts">{items}</dl>{note}')


def table(title: str, *contents: tables.Table) -> Section:
    """A section of tables, which scroll sideways where they are too wide."""

    def body(side: int) -> str:
        return "".join(
            f'<div class="scroll" tabindex="0" role="region" '
            f'aria-label="{_text(content.caption or title)}">'
            f"{tables.to_html(content)}</div>"
            for content in contents
        )

    return Section(title, body)


def pictures(
    title: str,
    rows: Sequence[PictureRow],
    column_names: Sequence[str],
    caption: str = "",
) -> Section:
    """A section of pictures in named columns; narrow screens wrap each row.

    Args:
      title: Heading of the section.
      rows: each with one picture a column.
      column_names: headings; with the row's label they make the alternative text.
      caption: below the pictures; says what the columns are.

    Raises:
      UserError: a row has more or fewer pictures than there are columns.
    """
    for row in rows:
        if len(row.images) != len(column_names):
            raise UserError(
                f"row {row.label!r} has {len(row.images)} pictures, wanted one for "
                f"each of {list(column_names)}"
            )
    heads = "".join(
        f'<span role="columnheader">{_text(name)}</span>'
        for name in ("", *column_names)
    ).replace("<span", '<span class="label"', 1)

    # Narrow screens wrap a row after three pictures, or two if that comes out even.
    layout = "pictures pairs" if len(column_names) in (2, 4) else "pictures"

    def body(side: int) -> str:
        lines = "".join(_picture_row(row, column_names, side) for row in rows)
        return (
            f'<figure><div class="{layout}" role="table" aria-label="{_text(title)}">'
            f'<div class="head" role="row">{heads}</div>{lines}</div>'
            f"{_caption(caption)}</figure>"
        )

    return Section(title, body)


def curves(
    title: str, panels: Sequence[figures.Panel], caption: str = "", empty: str = ""
) -> Section:
    """A section of plots side by side.

    Args:
      title: Heading of the section.
      panels: plots, in order.
      caption: below them.
      empty: said instead when there is no panel.
    """
    drawings = [figures.plot_uri(panel) for panel in panels]
    plots = "".join(
        f'<figure><figcaption>{_text(panel.title)}</figcaption><img src="{drawing}" '
        f'alt="{_text(_plot_description(panel))}" width="390" height="310"></figure>'
        for panel, drawing in zip(panels, drawings, strict=True)
    )
    if not panels:
        return text(title, empty or "Nothing to plot.")
    return Section(
        title,
        lambda side: (
            f'<figure><div class="plots">{plots}</div>{_caption(caption)}</figure>'
        ),
    )


def details(title: str, records: Mapping[str, Any], note: str = "") -> Section:
    """A section of folded JSON records, such as config and versions.

    Args:
      title: Heading of the section.
      records: heading of a fold -> any JSON value.
      note: above the folds.
    """
    folds = "".join(
        f"<details><summary>{_text(name)}</summary><pre>"
        f"{_text(json.dumps(value, indent=2, default=str, ensure_ascii=False))}"
        "</pre></details>"
        for name, value in records.items()
    )
    return Section(title, lambda side: _paragraph(note) + folds)


def _picture_row(row: PictureRow, column_names: Sequence[str], side: int) -> str:
    note = f"<small>{_text(row.note)}</small>" if row.note else ""
    cells = "".join(
        f'<div role="cell">{_picture(image, f"{name}: {row.label}", side)}'
        f'<span class="name" aria-hidden="true">{_text(name)}</span></div>'
        for image, name in zip(row.images, column_names, strict=True)
    )
    return (
        f'<div role="row"><div class="label" role="rowheader">{_text(row.label)}{note}'
        f"</div>{cells}</div>"
    )


def _picture(image: np.ndarray | None, alt: str, side: int) -> str:
    if image is None:
        return ""
    height, width = np.shape(image)[:2]
    # Latents and thumbnails show their pixels; photographs are smoothed.
    exact = ' class="exact"' if max(height, width) <= _EXACT_SIDE else ""
    return (
        f'<img{exact} src="{figures.picture_uri(image, side)}" alt="{_text(alt)}" '
        f'width="{width}" height="{height}">'
    )


def _plot_description(panel: figures.Panel) -> str:
    """Says in words what a plot shows, for readers who do not see it."""
    ends = "; ".join(
        f"{series.name}: {len(series.x)} points from {series.y[0]:.3g} to "
        f"{series.y[-1]:.3g}"
        for series in panel.series
        if len(series.x)
    )
    return f"{panel.title}: {panel.y_label} against {panel.x_label}. {ends}"


def _caption(caption: str) -> str:
    return f"<figcaption>{_text(caption)}</figcaption>" if caption else ""


def _paragraph(paragraph: str) -> str:
    return f"<p>{_text(paragraph)}</p>" if paragraph else ""


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
