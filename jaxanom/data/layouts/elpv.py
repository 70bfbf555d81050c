"""ELPV, photographs of solar cells from a package of the Python index -> records.

2,624 grey electroluminescence photographs of 300 px, each with the probability by which
experts call the cell defective (0, 1/3, 2/3 or 1) and the kind of its silicon. There
are no masks. Whoever publishes results cites the three papers that its page asks for:
https://github.com/zae-bayern/elpv-dataset.

The categories are the owners' own words, "mono" and "poly": the two look so different
that normal cells of one say nothing of the other. Half of the sure normal cells train.
"""

import filecmp
import importlib.util
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxanom import files
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError, check_known

PACKAGE = "elpv_dataset"
TABLE = "labels.csv"
CATEGORIES = ("mono", "poly")
DEFECT = "defective"
LICENCE = (
    "ELPV is licensed under CC BY-NC-SA 4.0 "
    "(https://creativecommons.org/licenses/by-nc-sa/4.0/): name its authors, "
    "do not use it commercially, and share what you make of it alike. Use it to "
    "evaluate; do not ship what was trained on it."
)
NOTICE = "LICENCE.txt"


class Cell(NamedTuple):
    """A row of the table: a photograph, its defect probability, its kind of silicon."""

    image: Path
    probability: float
    category: str


def folder() -> Path:
    """Finds the photographs of the installed package, none of whose code is run.

    Raises:
      UserError: The package is not installed; says what to install.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "ELPV needs the package elpv-dataset: pip install 'jaxanom[data]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def table(root: str | Path) -> list[Cell]:
    """Reads `labels.csv`: path, probability and kind, with white space between.

    Raises:
      UserError: There is no table of text, it is empty, or a row is malformed; names
        the file and the line.
    """
    path = Path(root) / TABLE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no table of text: {error}") from error
    cells: dict[str, Cell] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cell = _cell(Path(root), line)
            if cell.image.name in cells:
                raise UserError(f"{cell.image.name} is there twice")
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        cells[cell.image.name] = cell
    if not cells:
        raise UserError(f"{path} is empty")
    return list(cells.values())


def _cell(root: Path, line: str) -> Cell:
    fields = line.split()
    if len(fields) != 3:
        raise UserError(
            f"{len(fields)} columns; wanted 3: path, probability of a defect, kind"
        )
    name, probability, category = fields
    try:
        value = float(probability)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"probability {probability!r}; wanted a number from 0 to 1")
    check_known("kind", category, CATEGORIES)
    if not (root / name).is_file():
        raise UserError(f"there is no file {root / name}")
    return Cell(root / name, value, category)


def read(
    root: str | Path,
    categories: Sequence[str] = (),
    seed: int = 0,
    threshold: float | None = None,
) -> list[Record]:
    """Lists the photographs as records without masks.

    Args:
      root: Folder with the table, see `folder`.
      categories: Which of `CATEGORIES`, in this order; empty takes both.
      seed: Draws the half of each category's cells of probability 0 that trains.
      threshold: None leaves out cells about which experts were unsure (probability
        neither 0 nor 1). A number tests these too, and calls them defective from this
        probability on. What trains is the same either way.

    Returns:
      Records in the order of `mvtec.read_folder`.

    Raises:
      UserError: An unknown category, a threshold outside (0, 1], or what `table` says.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"threshold={threshold}; wanted above 0 and at most 1")
    for category in categories:
        check_known("category", category, CATEGORIES)
    cells = table(root)
    records = []
    for category in dict.fromkeys(categories or CATEGORIES):
        own = [cell for cell in cells if cell.category == category]
        records += _divide(own, seed, threshold)
    return records


def _divide(cells: Sequence[Cell], seed: int, threshold: float | None) -> list[Record]:
    """Divides the cells of one category into training and test images."""
    cells = sorted(cells, key=lambda cell: mvtec.natural_key(cell.image.name))
    normal = [cell for cell in cells if cell.probability == 0]
    order = np.random.default_rng(seed).permutation(len(normal))
    trained = {normal[number] for number in order[: (len(normal) + 1) // 2]}
    groups: dict[tuple[str, str], list[Record]] = {
        ("train", GOOD): [],
        ("test", GOOD): [],
        ("test", DEFECT): [],
    }
    for cell in cells:
        if 0 < cell.probability < 1 and threshold is None:
            continue
        defective = cell.probability >= (threshold or 1)
        split = "train" if cell in trained else "test"
        kind = DEFECT if defective else GOOD
        name = f"{cell.category}/{split}/{kind}/{cell.image.name}"
        row = Record(str(cell.image), None, cell.category, kind, split, name)
        groups[split, kind].append(row)
    return [row for rows in groups.values() for row in rows]


def write_mvtec(
    directory: str | Path,
    categories: Sequence[str] = (),
    seed: int = 0,
    threshold: float | None = None,
) -> list[Record]:
    """Copies the photographs into the layout of MVTec AD, whole or not at all.

    Beside the categories, `LICENCE.txt` says the terms and how the cells were divided.

    Args:
      directory: To write to. One that holds this very tree already is left as it is.
      categories, seed, threshold: As in `read`.

    Returns:
      What `read` lists.

    Raises:
      UserError: The package is missing, or `directory` holds anything else.
    """
    target = Path(directory).expanduser()
    records = read(folder(), categories, seed, threshold)
    unsure = "left out" if threshold is None else f"defective from {threshold} on"
    notice = (
        f"{LICENCE}\n\nHalf of the cells of probability 0 train, drawn with seed "
        f"{seed}; unsure cells: {unsure}.\n"
    )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not _holds(target, records, notice):
            raise UserError(
                f"{target} holds something else already, perhaps ELPV with another "
                "seed, threshold or categories; choose another --out, or delete it"
            )
        return records
    with files.replacing(target) as building:
        for row in records:
            place = building / row.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row.image, place)
        (building / NOTICE).write_bytes(notice.encode())
    return records


def _holds(target: Path, records: Sequence[Record], notice: str) -> bool:
    """Says whether a folder holds this tree and nothing else."""
    names = {Path(row.name) for row in records} | {Path(NOTICE)}
    present = {
        path.relative_to(target) for path in target.rglob("*") if not path.is_dir()
    }
    return (
        present == names
        and (target / NOTICE).read_bytes() == notice.encode()
        and all(
            filecmp.cmp(row.image, target / row.name, shallow=False) for row in records
        )
    )
