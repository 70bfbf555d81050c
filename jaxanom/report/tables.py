"""Records -> tables -> HTML, Markdown or aligned plain text."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxanom.errors import UserError

Cell = str | float | int | None
UNDEFINED = "–"
NO_CLASS = ("no good", "no defective")
"""Stand for numbers of a category whose test images lack one of the classes."""
_NUMBER = re.compile(r"[-+−]?[\d.]+(e[-+]?\d+)?( ?[±%].*)?")


class Table(NamedTuple):
    """Cells with headings; nothing in it is HTML.

    Attributes:
      columns: headings.
      rows: cells, as many as columns; None and NaN show as a dash.
      caption: what the table says, one sentence.
      notes: shown below, such as the source of published numbers.
      has_total: the last row sums the others up and is set apart.
      digits: decimals of float cells.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    has_total: bool = False
    digits: int = 3


def from_records(
    records: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> Table:
    """Makes a table of dicts.

    Args:
      records: one a row; a key that a record lacks is an empty cell.
      columns: key -> heading, in order; all keys in order of appearance by default.
      **options: further fields of `Table`.
    """
    if columns is None:
        columns = {key: key for record in records for key in record}
    rows = tuple(tuple(record.get(key) for key in columns) for record in records)
    return Table(columns=tuple(columns.values()), rows=rows, **options)


def per_category(
    result: Mapping[str, Any], columns: Mapping[str, str], **options: Any
) -> Table:
    """Lists one evaluation by category, in percent, with the mean as last row.

    Args:
      result: from `evaluation.runner.evaluate`. Where its `one_class` names a category,
        the table says which class is missing in place of the number.
      columns: metric -> heading.
      **options: further fields of `Table`.
    """
    records = {**result["per_category"], "Mean": result["mean"]}
    lacks = result.get("one_class", {})

    def cell(name: str, key: str, value: float | None) -> str:
        text = percent(value)
        ranks_images = key.startswith("image_") and name in lacks
        return f"no {lacks[name]}" if ranks_images and text == UNDEFINED else text

    rows = tuple(
        (name, *(cell(name, key, values.get(key)) for key in columns))
        for name, values in records.items()
    )
    headings = ("Category", *columns.values())
    return Table(headings, rows, has_total=True, **options)


def compare(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    columns: Mapping[str, str],
    **options: Any,
) -> Table:
    """Sets variants beside each other, in percent, mean ± deviation over repeats.

    Args:
      runs: variant ("real only") -> one dict of metrics per repeat, such as per seed.
      columns: metric -> heading.
      **options: further fields of `Table`.
    """
    rows = tuple(
        (name, len(repeats), *(_spread(repeats, key) for key in columns))
        for name, repeats in runs.items()
    )
    return Table(("Variant", "Repeats", *columns.values()), rows, **options)


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a fraction as a percentage without the sign, as papers do."""
    return format_cell(None if value is None else 100 * value, digits)


def mean_std(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """Formats "mean ± sample standard deviation"; one value has no deviation.

    A dash if there is no value or any is undefined: a mean over fewer repeats than the
    table says would mislead.
    """
    array = np.asarray(values, np.float64) * scale
    if not array.size or not np.isfinite(array).all():
        return UNDEFINED
    text = format_cell(float(array.mean()), digits)
    if array.size > 1:
        text += f" ± {array.std(ddof=1):.{digits}f}"
    return text


def format_cell(value: Cell, digits: int = 3) -> str:
    """Formats a cell; floats that `digits` decimals would show as 0 turn scientific."""
    if value is None:
        return UNDEFINED
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return UNDEFINED
        if value != 0 and (abs(value) < 0.5 * 10**-digits or abs(value) >= 1e7):
            return f"{value:.{digits}g}"
        return f"{value:.{digits}f}"
    return str(value)


def to_text(table: Table) -> str:
    """Aligned plain text, for a terminal."""
    heads, rows, numeric = _formatted(table)
    widths = _widths([heads, *rows])
    rule = "  ".join("-" * width for width in widths)
    body = [_aligned(row, widths, numeric) for row in rows]
    if table.has_total and len(body) > 1:
        body.insert(-1, rule)
    lines = [_aligned(heads, widths, numeric), rule, *body]
    lines = [line.rstrip() for line in lines]
    return "\n".join(
        ([table.caption] if table.caption else []) + lines + [*table.notes]
    )


def to_markdown(table: Table) -> str:
    """A Markdown table whose source is aligned too."""
    heads, rows, numeric = _formatted(table)
    heads = [_escape_markdown(cell) for cell in heads]
    rows = [[_escape_markdown(cell) for cell in row] for row in rows]
    widths = [max(3, width) for width in _widths([heads, *rows])]
    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    ]
    lines = [
        "| " + " | ".join(_pad(row, widths, numeric)) + " |"
        for row in [heads, rule, *rows]
    ]
    lines += ["", *table.notes] if table.notes else []
    return "\n".join(lines)


def to_html(table: Table) -> str:
    """A `table` element; every text in it is escaped."""
    heads, rows, numeric = _formatted(table)
    kinds = ["number" if right else "text" for right in numeric]

    def line(row: Sequence[str], tags: Sequence[str]) -> str:
        cells = (
            f'<{tag} class="{kind}">{html.escape(cell)}</{tag.split()[0]}>'
            for cell, kind, tag in zip(row, kinds, tags, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    headings = line(heads, ['th scope="col"'] * len(heads))
    tags = ['th scope="row"'] + ["td"] * (len(heads) - 1)
    body = [line(row, tags) for row in rows]
    foot = [body.pop()] if table.has_total and body else []
    # A caption is as wide as its table; the span can be kept as narrow as the screen.
    caption = f"<caption><span>{html.escape(table.caption)}</span></caption>"
    parts = [
        caption if table.caption else "",
        f"<thead>{headings}</thead><tbody>{''.join(body)}</tbody>",
        f"<tfoot>{''.join(foot)}</tfoot>" if foot else "",
    ]
    notes = [f'<p class="note">{html.escape(note)}</p>' for note in table.notes]
    return '<table class="data">' + "".join([*parts, "</table>", *notes])


def _spread(repeats: Sequence[Mapping[str, float]], key: str) -> str:
    values = [run.get(key, float("nan")) for run in repeats]
    return mean_std(values, scale=100, digits=1)


def _formatted(table: Table) -> tuple[list[str], list[list[str]], list[bool]]:
    """Returns headings, cells as text, and which columns align right."""
    for row in table.rows:
        if len(row) != len(table.columns):
            raise UserError(
                f"row {row} has {len(row)} cells for {len(table.columns)} columns"
            )
    rows = [[format_cell(cell, table.digits) for cell in row] for row in table.rows]
    numeric = [
        bool(rows) and all(_is_numeric(row[k]) for row in rows)
        for k in range(len(table.columns))
    ]
    return list(table.columns), rows, numeric


def _is_numeric(cell: str) -> bool:
    stands_for_number = cell in (UNDEFINED, *NO_CLASS)
    return stands_for_number or bool(_NUMBER.fullmatch(cell))


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]


def _pad(row: Sequence[str], widths: list[int], numeric: list[bool]) -> list[str]:
    return [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]


def _aligned(row: Sequence[str], widths: list[int], numeric: list[bool]) -> str:
    return "  ".join(_pad(row, widths, numeric))


def _escape_markdown(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
