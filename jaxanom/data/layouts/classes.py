"""Images sorted into classes: CoOp's `split.json`, or class folders -> records.

A class is a record's category and every record is "good", so that shots, sources and
batches are those of any dataset; `category_id` is the label.

    split.json          {"train": [[path, label, class name], ...], "val", "test"}
    train/<class>/*     and test/<class>/*
    <class>/*           divided by a seed, half of each class to test

Paths are relative to the directory, or to its folder `images`. Labels number classes
from 0. Validation images are left alone: nothing here is chosen on them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom import record
from jaxanom.data.layouts import mvtec
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError, check_choice

SPLIT = "split.json"
SPLITS = ("train", "test")
SUBSETS = ("all", "base", "new")


def read(directory: str | Path, seed: int = 0) -> tuple[list[Record], tuple[str, ...]]:
    """Lists the images of a classification dataset.

    Args:
      directory: in one of the layouts above.
      seed: Decides the division, where the directory has none.

    Returns:
      (records, class names in label order).

    Raises:
      UserError: no such directory, none of the layouts, or a damaged split file; says
        what was wanted.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is no directory; set config.data.directory")
    split_files = sorted(root.glob("split*.json"))
    if split_files:
        return _from_split(
            root, root / SPLIT if root / SPLIT in split_files else split_files[0]
        )
    if all((root / split).is_dir() for split in SPLITS):
        named = {split: _classes(root / split) for split in SPLITS}
        names = sorted(
            named["train"].keys() | named["test"].keys(), key=mvtec.natural_key
        )
        records = [
            _record(path, name, split)
            for name in names
            for split in SPLITS
            for path in named[split].get(name, ())
        ]
    else:
        named = _classes(root)
        names = sorted(named, key=mvtec.natural_key)
        records = [r for name in names for r in _divided(named[name], name, seed)]
    if len(names) < 2:
        raise UserError(
            f"{root} holds {len(names)} classes; wanted {SPLIT}, train/<class>/ and "
            "test/<class>/, or <class>/ folders of images"
        )
    return records, tuple(names)


def subset(names: Sequence[str], which: str) -> tuple[str, ...]:
    """Chooses classes by label: the first ceil(K / 2) are base, the others new.

    Args:
      names: in label order.
      which: one of `SUBSETS`.

    Raises:
      UserError: another subset.
    """
    check_choice("config.data.class_subset", which, SUBSETS)
    half = (len(names) + 1) // 2
    return {"all": tuple(names), "base": tuple(names[:half])}.get(
        which, tuple(names[half:])
    )


def _from_split(root: Path, path: Path) -> tuple[list[Record], tuple[str, ...]]:
    entries = record.read_json(path)
    if not isinstance(entries, Mapping) or any(s not in entries for s in SPLITS):
        raise UserError(f"{path} has no lists {SPLITS}")
    names: dict[int, str] = {}
    records = []
    for split in SPLITS:
        for number, entry in enumerate(entries[split]):
            file, label, name = _entry(path, split, number, entry)
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"{path} calls label {label} both {names[label]!r} and {name!r}"
                )
            records.append(_record(_resolve(root, path, file), name, split))
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path} skips a label: {sorted(names)[:9]}; wanted 0, 1, ...")
    if len(set(names.values())) < len(names):
        raise UserError(f"{path} gives two labels the same class name")
    return records, tuple(names[label] for label in range(len(names)))


def _entry(path: Path, split: str, number: int, entry: Any) -> tuple[str, int, str]:
    fits = isinstance(entry, list) and len(entry) == 3
    if not fits or not isinstance(entry[1], int) or not isinstance(entry[2], str):
        raise UserError(
            f"{path}: entry {number} of {split!r} is {entry!r}; wanted [path, label, "
            "class name]"
        )
    return str(entry[0]), entry[1], entry[2]


def _resolve(root: Path, path: Path, file: str) -> Path:
    for candidate in (root / file, root / "images" / file):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path} names {file!r}, which is not below {root}")


def _classes(root: Path) -> dict[str, list[Path]]:
    """Returns {folder name: its image files}; empty ones are left out."""
    by_class = {sub.name: mvtec.images_in(sub) for sub in mvtec.folders_in(root)}
    return {name: paths for name, paths in by_class.items() if paths}


def _divided(paths: Sequence[Path], name: str, seed: int) -> list[Record]:
    words = [seed, *name.encode()]
    order = np.random.default_rng(words).permutation(len(paths))
    test = set(order[: len(paths) // 2].tolist())
    return [
        _record(path, name, "test" if number in test else "train")
        for number, path in enumerate(paths)
    ]


def _record(path: Path, name: str, split: str) -> Record:
    title = f"{name}/{split}/{GOOD}/{path.name}"
    return Record(str(path), None, name, GOOD, split, title)
