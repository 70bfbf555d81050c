"""Generated sets on disk: written whole or not at all, read like any dataset.

<category>/train/good/*              copies of normal images, if given
<category>/test/<defect>/k.png       generated images and
<category>/ground_truth/<defect>/k_mask.png   their final masks: the MVTec layout
<category>/<defect>/image/k.png      the same pairs once more in the
<category>/<defect>/mask/k.png       layout of released generators
<category>/<defect>/requested_mask/k.png      where the defect was asked for
manifest.jsonl                       one line per row, in order of writing
"""

import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxanom import files
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError

MANIFEST = "manifest.jsonl"
_NOTHING = "none of {} rows has a non-empty mask; nothing to write"


class GeneratedRow(NamedTuple):
    """One generated image.

    Attributes:
      category, defect_type: what was asked for.
      image: uint8 [H, W, 3].
      mask: uint8 [H, W], non-zero = defect; the final (refined) mask.
      requested_mask: uint8 [H, W], where the defect was asked for.
      source_name: record name of the normal image it was made of.
      prompt: text that it was made with.
      seed: Decides its noise.
    """

    category: str
    defect_type: str
    image: np.ndarray
    mask: np.ndarray
    requested_mask: np.ndarray
    source_name: str
    prompt: str
    seed: int


class Written(NamedTuple):
    """What `write` did.

    Attributes:
      directory: Where the set lies.
      num_images: pairs written.
      num_left_out: rows whose final mask was empty: nothing there to learn from. The
        manifest lists them with `image` null.
    """

    directory: Path
    num_images: int
    num_left_out: int


def write(
    directory: str | Path,
    rows: Iterable[GeneratedRow],
    normals: Mapping[str, Sequence[str | Path | np.ndarray]] | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes a generated set; an interrupted call leaves nothing behind.

    The set is built in a hidden folder beside `directory` and renamed when complete, so
    that whoever looks at `directory` sees the old set, the new set, or nothing.

    Args:
      directory: absent, empty, or (with `overwrite`) an earlier generated set.
      rows: consumed one at a time; may be a generator.
      normals: category -> normal images, as files to copy or arrays uint8 [H, W, 3].
        A category with normal images can be opened as a dataset of its own.
      overwrite: replaces an earlier generated set, but no other folder.

    Raises:
      UserError: the directory is in use, a row has a bad name, shape or type, or no
        row has a non-empty mask.
    """
    target = _target(directory, overwrite)
    with files.replacing(target) as building:
        building.mkdir()
        entries = _write_rows(building, rows)
        _write_normals(building, normals or {})
    num_images = sum(entry["image"] is not None for entry in entries)
    return Written(target, num_images, len(entries) - num_images)


def leave_to_another(
    directory: str | Path, rows: Iterable[GeneratedRow], overwrite: bool = False
) -> Written:
    """Does all of `write` but the writing, for processes beside the one that writes.

    Rows are drawn by all processes together, so each of them has to ask for every row.

    Raises:
      UserError: see `write`.
    """
    target = _target(directory, overwrite)
    kept = [bool(row.mask.any()) for row in rows]
    if not any(kept):
        raise UserError(_NOTHING.format(len(kept)))
    return Written(target, sum(kept), len(kept) - sum(kept))


def read(directory: str | Path) -> list[Record]:
    """Reads a generated set as records, split "test" for the generated images.

    Pass them to `catalog.from_records`, with the real dataset's names where ids have to
    agree. Sets without normal images are read as well.

    Raises:
      UserError: no generated set, or one of its files is bad.
    """
    read_manifest(directory)
    records = mvtec.read_folder(directory, require_train=False)
    mvtec.check(records)
    return records


def read_manifest(directory: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a set's manifest; paths are relative to `directory`.

    Raises:
      UserError: There is no manifest, so this is not a generated set, or it is damaged.
    """
    path = Path(directory).expanduser() / MANIFEST
    if not path.is_file():
        raise UserError(f"{directory} is not a generated set: it has no {MANIFEST}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _target(directory: str | Path, overwrite: bool) -> Path:
    """Returns the folder itself, not a link to it, which a rename would replace."""
    target = Path(directory).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a new directory")
    if not target.is_dir() or not any(target.iterdir()):
        return target
    if not overwrite:
        raise UserError(
            f"{target} is not empty; give another directory, or overwrite=True to "
            "replace the generated set in it"
        )
    if not (target / MANIFEST).is_file():
        raise UserError(
            f"{target} is not a generated set (no {MANIFEST}); it is not overwritten"
        )
    return target


def _write_rows(root: Path, rows: Iterable[GeneratedRow]) -> list[dict[str, Any]]:
    counters: dict[tuple[str, str], itertools.count] = {}
    entries = []
    with (root / MANIFEST).open("w", encoding="utf-8") as manifest:
        for number, row in enumerate(rows):
            _check_row(row, number)
            counter = counters.setdefault(
                (row.category, row.defect_type), itertools.count()
            )
            written = _write_images(root, row, counter) if row.mask.any() else {}
            entries.append(_entry(row, written))
            manifest.write(json.dumps(entries[-1]) + "\n")
    if not any(entry["image"] for entry in entries):
        raise UserError(_NOTHING.format(len(entries)))
    return entries


def _entry(row: GeneratedRow, written: Mapping[str, str]) -> dict[str, Any]:
    """Returns a row of the manifest."""
    return {
        "category": row.category,
        "defect_type": row.defect_type,
        "source_name": row.source_name,
        "prompt": row.prompt,
        "seed": int(row.seed),
        "mask_area": int(np.count_nonzero(row.mask)),
        "requested_mask_area": int(np.count_nonzero(row.requested_mask)),
        **{key: written.get(key) for key in ("image", "mask", "requested_mask")},
    }


def _write_images(
    root: Path, row: GeneratedRow, counter: itertools.count
) -> dict[str, str]:
    stem = f"{next(counter):03d}"
    category, kind = row.category, row.defect_type
    pictures = {
        "image": row.image,
        "mask": np.where(row.mask != 0, 255, 0).astype(np.uint8),
        "requested_mask": np.where(row.requested_mask != 0, 255, 0).astype(np.uint8),
    }
    written = {name: f"{category}/{kind}/{name}/{stem}.png" for name in pictures}
    for name, values in pictures.items():
        _save(root / written[name], values)
    written["image"] = f"{category}/test/{kind}/{stem}.png"
    written["mask"] = f"{category}/ground_truth/{kind}/{stem}_mask.png"
    for name in ("image", "mask"):
        _save(root / written[name], pictures[name])
    return written


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _write_normals(
    root: Path, normals: Mapping[str, Sequence[str | Path | np.ndarray]]
) -> None:
    for category, normal_images in normals.items():
        _check_name("category", category)
        folder = root / category / "train" / GOOD
        for number, normal in enumerate(normal_images):
            if isinstance(normal, np.ndarray):
                _save(folder / f"{number:03d}.png", normal)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                suffix = Path(normal).suffix.lower()
                shutil.copyfile(normal, folder / f"{number:03d}{suffix}")


def _check_row(row: GeneratedRow, number: int) -> None:
    _check_name("category", row.category)
    _check_name("defect_type", row.defect_type)
    if row.defect_type in (GOOD, "train", "test", "ground_truth"):
        raise UserError(f"row {number}: defect_type {row.defect_type!r} is taken")
    size = row.image.shape[:2]
    if row.image.dtype != np.uint8 or row.image.shape != (*size, 3):
        raise UserError(
            f"row {number}: image is {row.image.dtype} {row.image.shape}; "
            "wanted uint8 [H, W, 3]"
        )
    for name in ("mask", "requested_mask"):
        value = getattr(row, name)
        if value.dtype not in (np.uint8, np.bool_) or value.shape != size:
            raise UserError(
                f"row {number}: {name} is {value.dtype} {value.shape}; "
                f"wanted uint8 {size} like its image"
            )


def _check_name(what: str, name: str) -> None:
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"{what} {name!r} cannot be a folder name")
