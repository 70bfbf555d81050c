"""Rows of a sweep -> what was chosen, a table, and plots against the particle count."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom.errors import UserError
from jaxanom.report import figures, page, tables

Row = Mapping[str, Any]
MEASURES = {
    "accuracy": "Accuracy (%)",
    "nll": "NLL (nats)",
    "ece": "ECE (%)",
    "spread": "Spread",
    "ksd": "KSD",
    "steps_per_s": "Steps/s",
}
PERCENT = ("accuracy", "ece")
CAPTION = (
    "Test images; mean ± standard deviation over seeds. Spread is the mean distance "
    "of two particles, no statement about calibration; KSD the distance to the "
    "posterior that every transport aims at, comparable between rows. Steps/s counts "
    "the steps of all runs of one program, measuring included."
)


def chosen(rows: Sequence[Row], development_seed: int) -> list[Row]:
    """Returns the rows to report: one step size for each particle count and transport.

    Where several were tried, the one with the least NLL on the development seed; the
    rows of that seed are then left out.

    Raises:
      UserError: several step sizes, and no row of the development seed.
    """
    kept = []
    for members in _by(rows, ("num_particles", "update", "rkhs")).values():
        sizes = {row["step_size"] for row in members}
        if len(sizes) == 1:
            kept += members
            continue
        tried = [row for row in members if row["seed"] == development_seed]
        if {row["step_size"] for row in tried} != sizes:
            raise UserError(
                f"config.sweep.step_size={tuple(sorted(sizes))} is to be chosen on "
                f"config.sweep.development_seed={development_seed}, which is not among "
                "config.sweep.seed"
            )
        best = min(tried, key=lambda row: _number(row["nll"], np.inf))["step_size"]
        kept += [
            row
            for row in members
            if row["step_size"] == best
            and (row["seed"] != development_seed or len(members) == len(tried))
        ]
    return kept


def table(rows: Sequence[Row], caption: str = CAPTION) -> tables.Table:
    """Lists every transport and number of particles, of `chosen` rows."""
    lines = []
    for (update, rkhs, number), members in _by(
        rows, ("update", "rkhs", "num_particles")
    ).items():
        lines.append(
            (
                _name(update, rkhs),
                number,
                f"{members[0]['step_size']:g}",
                len(members),
                *(_cell(members, measure) for measure in MEASURES),
            )
        )
    heads = ("Transport", "N", "Step size", "Seeds", *MEASURES.values())
    return tables.Table(heads, tuple(lines), caption=caption)


def panels(rows: Sequence[Row]) -> list[figures.Panel]:
    """One plot a measure against the number of particles, a line a transport."""
    lines = _by(rows, ("update", "rkhs"))
    plots = []
    for measure, title in MEASURES.items():
        series = []
        for (update, rkhs), members in lines.items():
            of_number = _by(members, ("num_particles",))
            points = {n: _mean(group, measure) for (n,), group in of_number.items()}
            points = {n: value for n, value in sorted(points.items()) if value == value}
            series.append(
                figures.Series(_name(update, rkhs), list(points), [*points.values()])
            )
        plots.append(
            figures.Panel(
                title,
                "particles N",
                title,
                tuple(line for line in series if len(line.x)),
                log_x=True,
                log_y=measure in ("ksd", "steps_per_s", "spread"),
            )
        )
    return plots


def path_panels(rows: Sequence[Row], limit: int = 12) -> list[figures.Panel]:
    """Particles over time on their two principal components, where there are several.

    Args:
      rows: those with a `path`.
      limit: most plots; the largest numbers of particles first.
    """
    paths = [row for row in rows if row.get("path") and row["num_particles"] > 1]
    first = {}
    for row in sorted(paths, key=lambda row: -row["num_particles"]):
        first.setdefault((row["num_particles"], row["update"], row["rkhs"]), row)
    plots = []
    for row in list(first.values())[:limit]:
        path = np.asarray(row["path"], float)  # [T, N, 2]
        moments = {"start": 0, "half-way": len(path) // 2, "end": len(path) - 1}
        name = _name(row["update"], row["rkhs"])
        plots.append(
            figures.Panel(
                f"{name}, N = {row['num_particles']} "
                f"({100 * row['path_share']:.0f} % of the variance)",
                "1st component",
                "2nd component",
                tuple(
                    figures.Series(moment, path[at, :, 0], path[at, :, 1], dots=True)
                    for moment, at in moments.items()
                ),
            )
        )
    return plots


def sections(rows: Sequence[Row], development_seed: int = 0) -> list[page.Section]:
    """Returns the page's sections: table, plots, paths of particles."""
    reported = chosen(rows, development_seed)
    return [
        page.table("Particles and transports", table(reported)),
        page.curves(
            "Against the number of particles",
            panels(reported),
            "Means over seeds. Spread is no measure of calibration.",
        ),
        page.curves(
            "Particles over time",
            path_panels(rows),
            "Each plot has principal components of its own, over all of its particles "
            "and moments, of the first seed.",
            "No run had several particles.",
        ),
    ]


def write(
    path: str | Path,
    rows: Sequence[Row],
    records: Mapping[str, Any],
    development_seed: int = 0,
    title: str = "A sweep over particle posteriors",
) -> Path:
    """Writes one self-contained page.

    Args:
      path: The HTML file.
      rows: All rows of the sweep.
      records: shown folded, such as config and versions.
      development_seed: see `chosen`.
      title: Heading of the page.
    """
    parts = sections(rows, development_seed)
    parts.append(page.details("Run record", records))
    return page.write(Path(path), title, parts)


def _by(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _name(update: str, rkhs: str) -> str:
    return update if rkhs in ("-", "rbf") else f"{update}, {rkhs}"


def _number(value: float | None, missing: float = np.nan) -> float:
    return missing if value is None else float(value)


def _values(rows: Sequence[Row], measure: str) -> list[float]:
    scale = 100.0 if measure in PERCENT else 1.0
    return [scale * _number(row.get(measure)) for row in rows]


def _mean(rows: Sequence[Row], measure: str) -> float:
    return float(np.mean(_values(rows, measure)))


def _cell(rows: Sequence[Row], measure: str) -> tables.Cell:
    values = _values(rows, measure)
    digits = 3 if measure == "nll" else 1
    if measure == "steps_per_s":
        return tables.format_cell(float(np.median(values)), digits)
    return tables.mean_std(values, digits=digits)
