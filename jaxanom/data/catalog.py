"""Every dataset by name -> records, and random access to their decoded images."""

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxanom.data import images
from jaxanom.data.layouts import classes, mvtec, published
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError

Example = dict[str, Any]
Load = Callable[[Record], tuple[np.ndarray, np.ndarray]]

DATASETS = ("folder", "foundry", "classes", "tfds", *published.READERS)
CACHE_BYTES = 4 * 2**30


class Source(Protocol):
    """Random access to examples; `source[i]` depends on `i` alone."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, row: int) -> Example:
        """Returns the example of a row."""


class Dataset(NamedTuple):
    """Records of one dataset and how to decode them.

    Attributes:
      name: for the run record.
      categories: `category_id` counts in this order.
      defect_types: `defect_id` counts in this order; the first is always "good".
      image_size: (height, width) of every decoded image.
      records: all splits and categories; a record number is a position in here.
      load: record -> (image uint8 [H, W, 3], mask uint8 {0, 1} [H, W]), read-only. A
        defective record without a mask loads as zeros: see `unmasked`.
    """

    name: str
    categories: tuple[str, ...]
    defect_types: tuple[str, ...]
    image_size: tuple[int, int]
    records: tuple[Record, ...]
    load: Load


def open_dataset(
    name: str,
    directory: str | Path | None = None,
    categories: Sequence[str] = (),
    image_size: int | tuple[int, int] = 256,
    seed: int = 0,
    num_train: int = 64,
    num_test_good: int = 16,
    num_per_defect: int = 8,
    class_subset: str = "all",
) -> Dataset:
    """Opens a dataset; every file is checked before this returns.

    Args:
      name: "folder" reads `directory` in the MVTec layout, "classes" a directory of
        images sorted into classes (`class_images`), "foundry" renders, "tfds" reads
        what a builder of `builders` has prepared; the other names are those of
        `published`, read in place.
      directory: for "folder": one category, or a root of many; for published datasets
        and "tfds": where they were unpacked or prepared.
      categories: which to open, in this order; empty opens all.
      image_size: side, or (height, width), that images are resized to.
      seed: Decides the rendered images; folders do not use it.
      num_train, num_test_good, num_per_defect: rendered images per category, and per
        defect type of a category; folders do not use them.
      class_subset: "base" opens the first half of the categories, "new" the rest.

    Raises:
      UserError: what is wrong with the name, the folder or one of its files.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if name == "folder":
        if not directory:
            raise UserError("dataset 'folder' needs config.data.directory")
        records = mvtec.read_folder(directory, categories)
        mvtec.check(records)
        title = Path(directory).expanduser().absolute().name
        return chosen(from_records(title, records, size), class_subset)
    if name == "classes":
        if not directory:
            raise UserError("dataset 'classes' needs config.data.directory")
        records, names = classes.read(directory, seed)
        title = Path(directory).expanduser().absolute().name
        whole = from_records(title, records, size, names)
        return chosen(whole, class_subset, categories)
    if name == "tfds" or name in published.READERS:
        if not directory:
            raise UserError(f"dataset {name!r} needs config.data.directory")
        if name == "tfds":
            return chosen(_prepared(directory, categories, size), class_subset)
        records = published.read(name, directory, categories)
        mvtec.check(records)
        return chosen(from_records(name, records, size), class_subset)
    if name == "foundry":
        counts = (num_train, num_test_good, num_per_defect)
        return chosen(_foundry(categories, size, seed, counts), class_subset)
    raise UserError(mvtec.unknown("dataset", name, DATASETS))


def chosen(
    dataset: Dataset, class_subset: str = "all", categories: Sequence[str] = ()
) -> Dataset:
    """Returns the dataset with some of its categories.

    Args:
      dataset: with all of them.
      class_subset: see `class_images.subset`; of `categories`, where they are given.
      categories: which to keep, in this order; empty keeps all.

    Raises:
      UserError: unknown subset or category, or none that is left.
    """
    for name in categories:
        if name not in dataset.categories:
            raise UserError(mvtec.unknown("category", name, dataset.categories))
    names = classes.subset(tuple(categories) or dataset.categories, class_subset)
    if names == dataset.categories:
        return dataset
    if not names:
        raise UserError(
            f"config.data.class_subset={class_subset!r} leaves no category of "
            f"{dataset.name!r}"
        )
    kept = tuple(r for r in dataset.records if r.category in names)
    return dataset._replace(categories=names, records=kept)


def from_records(
    name: str,
    records: Sequence[Record],
    image_size: tuple[int, int],
    categories: Sequence[str] | None = None,
    defect_types: Sequence[str] | None = None,
    load: Load | None = None,
) -> Dataset:
    """Makes a dataset of records.

    Args:
      name: for the run record.
      records: see `folders.Record`.
      image_size: (height, width).
      categories: id order; by default that of first occurrence. Give another dataset's
        to make ids agree with it.
      defect_types: id order, "good" first; by default "good" and the sorted rest.
      load: by default reads the records' files, resizes to `image_size` and keeps the
        arrays in memory up to `CACHE_BYTES`.

    Raises:
      UserError: no records, a bad size, or a record outside the given names.
    """
    if not records:
        raise UserError(f"dataset {name!r} has no records")
    height, width = image_size
    if min(height, width) < 1:
        raise UserError(f"image_size={tuple(image_size)}; wanted positive values")
    present = {record.defect_type for record in records} - {GOOD}
    categories = tuple(categories or dict.fromkeys(r.category for r in records))
    defect_types = tuple(defect_types or (GOOD, *sorted(present)))
    if defect_types[0] != GOOD:
        raise UserError(f"defect_types start with {defect_types[0]!r}, not {GOOD!r}")
    for record in records:
        if record.category not in categories:
            raise UserError(mvtec.unknown("category", record.category, categories))
        if record.defect_type not in defect_types:
            raise UserError(
                mvtec.unknown("defect type", record.defect_type, defect_types)
            )
    size = (int(height), int(width))
    load = load or cached(functools.partial(load_files, size=size))
    return Dataset(name, categories, defect_types, size, tuple(records), load)


def load_files(record: Record, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a record's files and resizes both to `size` = (height, width)."""
    image = images.load_image(record.image)
    if record.mask is None:
        mask = np.zeros(image.shape[:2], np.uint8)
    else:
        mask = images.load_mask(mvtec.mask_files(record.mask))
    if mask.shape != image.shape[:2]:
        raise UserError(
            f"mask {record.mask} is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{record.image} is {image.shape[1]} x {image.shape[0]}"
        )
    return images.resize_image(image, size), images.resize_mask(mask, size)


def cached(load: Load, limit_bytes: int = CACHE_BYTES) -> Load:
    """Keeps what `load` returns, as read-only arrays, until `limit_bytes` are held.

    Nothing is thrown out again: under shuffled access a cache that replaces entries
    finds no more than one that stays. Threads may load the same record twice; both
    get equal arrays.
    """
    return _Cached(load, limit_bytes)


class _Cached:
    """See `cached`. Sent to another process, it goes without what it holds."""

    def __init__(self, load: Load, limit_bytes: int):
        self._load = load
        self._limit_bytes = limit_bytes
        self._kept: dict[Record, tuple[np.ndarray, np.ndarray]] = {}
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return _Cached, (self._load, self._limit_bytes)

    def __call__(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        if record in self._kept:
            return self._kept[record]
        image, mask = self._load(record)
        image.flags.writeable = mask.flags.writeable = False
        with self._lock:
            if self._held_bytes + image.nbytes + mask.nbytes <= self._limit_bytes:
                if record not in self._kept:
                    self._held_bytes += image.nbytes + mask.nbytes
                self._kept[record] = (image, mask)
        return image, mask


class _RecordSource:
    def __init__(self, dataset, indices, transform):
        self._dataset = dataset
        self._indices = indices
        self._transform = transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, row: int) -> Example:
        record = self._dataset.records[self._indices[row]]
        image, mask = self._dataset.load(record)
        example = {
            "image": image,
            "mask": mask,
            "label": np.int32(record.defect_type != GOOD),
            "category_id": np.int32(self._dataset.categories.index(record.category)),
            "defect_id": np.int32(self._dataset.defect_types.index(record.defect_type)),
            "index": np.int32(row),
        }
        return self._transform(example) if self._transform else example


def source(
    dataset: Dataset,
    indices: Sequence[int] | None = None,
    transform: Callable[[Example], Example] | None = None,
) -> Source:
    """Returns examples of a dataset by row, decoded when asked for.

    Args:
      dataset: where records and decoded arrays come from.
      indices: record numbers in row order, for example from `select`; None is all.
      transform: applied to each example; a pure function.

    Returns:
      A source of {image uint8 [H, W, 3], mask uint8 {0, 1} [H, W], label, category_id,
      defect_id, index int32}; `index` is the row.

    Raises:
      UserError: a record number out of range.
    """
    numbers = range(len(dataset.records)) if indices is None else map(int, indices)
    numbers = tuple(numbers)
    outside = [n for n in numbers if not 0 <= n < len(dataset.records)]
    if outside:
        raise UserError(
            f"record numbers {outside[:5]} are outside 0..{len(dataset.records) - 1}"
        )
    return _RecordSource(dataset, numbers, transform)


def select(
    dataset: Dataset,
    split: str | None = None,
    category: str | None = None,
    defect_type: str | None = None,
    anomalous: bool | None = None,
) -> list[int]:
    """Returns the numbers of records that agree with every given value, in order.

    Raises:
      UserError: a split, category or defect type that the dataset does not know; an
        empty result of known names is no error.
    """
    known = {
        "split": (split, ("train", "test")),
        "category": (category, dataset.categories),
        "defect type": (defect_type, dataset.defect_types),
    }
    for what, (value, names) in known.items():
        if value is not None and value not in names:
            raise UserError(mvtec.unknown(what, value, names))
    return [
        number
        for number, record in enumerate(dataset.records)
        if split in (None, record.split)
        and category in (None, record.category)
        and defect_type in (None, record.defect_type)
        and anomalous in (None, record.defect_type != GOOD)
    ]


def unmasked(dataset: Dataset, indices: Sequence[int] | None = None) -> dict[str, int]:
    """Counts the defective records (of those given) without a mask.

    Where there are any, pixel metrics have no ground truth.

    Returns:
      {folder that lacks the masks: images}, see `folders.unmasked`.
    """
    numbers = range(len(dataset.records)) if indices is None else indices
    return mvtec.unmasked(dataset.records[number] for number in numbers)


def _foundry(
    categories: Sequence[str],
    size: tuple[int, int],
    seed: int,
    counts: tuple[int, int, int],
) -> Dataset:
    """Makes a dataset whose records are rendered when asked for."""
    from jaxanom.data.foundry import render

    names = tuple(dict.fromkeys(categories or render.CATEGORIES))
    plan = {
        _rendered(row): row.index for row in render.records(names, *counts, seed=seed)
    }

    def load(record: Record) -> tuple[np.ndarray, np.ndarray]:
        sample = render.render(
            record.category,
            record.split,
            plan[record],
            seed,
            max(size),
            defect_type=record.defect_type,
        )
        image, mask = sample.image, sample.mask
        return images.resize_image(image, size), images.resize_mask(mask, size)

    return from_records("foundry", list(plan), size, load=cached(load))


def _prepared(
    directory: str | Path, categories: Sequence[str], size: tuple[int, int]
) -> Dataset:
    """Opens what a tensorflow-datasets builder has written."""
    from jaxanom.data.layouts import builders

    prepared = builders.Prepared(directory)
    load = cached(functools.partial(prepared.load, size=size))
    title = Path(directory).expanduser().absolute().parent.name
    whole = from_records(title, prepared.records, size, load=load)
    return chosen(whole, "all", categories)


def _rendered(row: Any) -> Record:
    """Returns the record of a planned image, named as if it were written to disk."""
    kind = row.defect_type
    name = f"{row.category}/{row.split}/{kind}/{row.number:03d}.png"
    mask = None if kind == GOOD else f"foundry:{name}"
    return Record(f"foundry:{name}", mask, row.category, kind, row.split, name)
