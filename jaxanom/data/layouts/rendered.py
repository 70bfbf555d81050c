"""Images that the foundry renders, as records named as if they were written to disk."""

from collections.abc import Sequence

from jaxanom.data.foundry import names, render
from jaxanom.data.layouts.mvtec import GOOD, Record


def plan(
    categories: Sequence[str], seed: int, *counts: int
) -> dict[Record, render.Row]:
    """Returns the records of a rendered dataset, each with what `sample` draws.

    Args:
      categories: Which to render, in this order; empty renders all.
      seed: Decides the images.
      *counts: Images per category, as in `render.records`.
    """
    opened = tuple(dict.fromkeys(categories)) or names.CATEGORIES
    return {_record(row): row for row in render.records(opened, *counts, seed=seed)}


def sample(row: render.Row, seed: int, size: int) -> render.Sample:
    """Renders one image, `size` pixels a side."""
    return render.render(*row[:3], seed, size, row.defect_type)


def _record(row: render.Row) -> Record:
    kind = row.defect_type
    name = f"{row.category}/{row.split}/{kind}/{row.number:03d}.png"
    mask = None if kind == GOOD else f"foundry:{name}"
    return Record(f"foundry:{name}", mask, row.category, kind, row.split, name)
