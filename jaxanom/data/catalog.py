"""Every dataset by name -> records, and random access to their decoded images."""

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxanom.data import canvas, images
from jaxanom.data.layouts import classes, mvtec, published
from jaxanom.data.layouts.mvtec import GOOD, Record
from jaxanom.errors import UserError, check_known

Example = dict[str, Any]
Load = Callable[[Record], tuple[np.ndarray, np.ndarray]]

DATASETS = ("folder", "foundry", "classes", "tfds", *published.READERS)
ASPECTS = ("square", "keep")
CACHE_BYTES = 4 * 2**30
_MOST_SHAPES = 64  # images whose ratios decide a canvas


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
      keeps_aspect: Whether images are fitted into `image_size` (`data.canvas`) instead
        of being stretched to it.
    """

    name: str
    categories: tuple[str, ...]
    defect_types: tuple[str, ...]
    image_size: tuple[int, int]
    records: tuple[Record, ...]
    load: Load
    keeps_aspect: bool = False


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
    aspect: str = "square",
) -> Dataset:
    """Opens a dataset; every file is checked before this returns.

    Args:
      name: "folder" reads `directory` in the MVTec layout, "classes" a directory of
        images sorted into classes (`layouts.classes`), "foundry" renders, "tfds" reads
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
      aspect: "square" stretches images to `image_size`; "keep" fits them into a canvas
        with the median ratio of the training images, whose shorter side is
        `image_size`, unless their ratios are too different (`canvas.varies`).

    Raises:
      UserError: what is wrong with the name, the folder or one of its files.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_known("dataset", name, DATASETS)
    check_known("aspect", aspect, ASPECTS)
    keeps_aspect = aspect == "keep"
    if name == "foundry":
        counts = (num_train, num_test_good, num_per_defect)
        records, load = _rendered(categories, counts, seed, size)
        whole = from_records(name, records, size, load=load, keeps_aspect=keeps_aspect)
        return narrowed(whole, class_subset)
    if not directory:
        raise UserError(f"dataset {name!r} needs config.data.directory")
    path = Path(directory).expanduser().absolute()
    names, shape_of, load_at = None, _shape, load_files
    if name == "classes":
        title, (records, names) = path.name, classes.read(directory, seed)
    elif name == "tfds":
        from jaxanom.data.layouts import builders

        prepared = builders.Prepared(directory)
        title, records = path.parent.name, prepared.records
        shape_of, load_at = prepared.shape, prepared.load
    else:
        is_folder = name == "folder"
        title = path.name if is_folder else name
        records = (
            mvtec.read_folder(directory, categories)
            if is_folder
            else published.read(name, directory, categories)
        )
        mvtec.check(records)
    if keeps_aspect:
        shapes = _shapes(records, shape_of)
        size = canvas.size_for(shapes, min(size))
        keeps_aspect = not canvas.varies(shapes)
    load = Cached(functools.partial(load_at, size=size, keeps_aspect=keeps_aspect))
    whole = from_records(title, records, size, names, None, load, keeps_aspect)
    return narrowed(whole, class_subset, categories)


def narrowed(
    dataset: Dataset, class_subset: str = "all", categories: Sequence[str] = ()
) -> Dataset:
    """Returns the dataset with some of its categories.

    Args:
      dataset: Holds all of them.
      class_subset: See `classes.subset`; of `categories`, where they are given.
      categories: Which to keep, in this order; empty keeps all.

    Raises:
      UserError: An unknown subset or category, or none that is left.
    """
    for name in categories:
        check_known("category", name, dataset.categories)
    names = tuple(dict.fromkeys(categories)) or dataset.categories
    names = classes.subset(names, class_subset)
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
    keeps_aspect: bool = False,
) -> Dataset:
    """Makes a dataset of records.

    Args:
      name: for the run record.
      records: see `mvtec.Record`.
      image_size: (height, width).
      categories: id order; by default that of first occurrence. Give another dataset's
        to make ids agree with it.
      defect_types: id order, "good" first; by default "good" and the sorted rest.
      load: by default reads the records' files, resizes to `image_size` and keeps the
        arrays in memory up to `CACHE_BYTES`.
      keeps_aspect: See `Dataset`.

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
        check_known("category", record.category, categories)
        check_known("defect type", record.defect_type, defect_types)
    size = (int(height), int(width))
    load = load or Cached(
        functools.partial(load_files, size=size, keeps_aspect=keeps_aspect)
    )
    return Dataset(
        name, categories, defect_types, size, tuple(records), load, keeps_aspect
    )


def load_files(
    record: Record, size: tuple[int, int], keeps_aspect: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a record's files and brings both to `size` = (height, width)."""
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
    return canvas.resized(image, mask, size, keeps_aspect)


def _shape(record: Record) -> tuple[int, int]:
    return images.header_size(record.image)[::-1]


def _shapes(
    records: Sequence[Record], shape_of: Callable[[Record], tuple[int, int]]
) -> list[tuple[int, int]]:
    """Returns (height, width) of training images, evenly spread over the records."""
    training = [r for r in records if r.split == "train"] or list(records)
    step = -(-len(training) // _MOST_SHAPES)
    return [shape_of(record) for record in training[::step]]


class Cached:
    """Keeps what a `Load` returns, as read-only arrays, while there is room.

    Nothing is thrown out again: under shuffled access a cache that replaces entries
    finds no more than one that stays. Threads may load the same record twice; both
    get equal arrays. Sent to another process, it goes without what it holds.
    """

    def __init__(self, load: Load, limit_bytes: int = CACHE_BYTES):
        """Starts empty; at most `limit_bytes` are held."""
        self._load = load
        self._limit_bytes = limit_bytes
        self._kept: dict[Record, tuple[np.ndarray, np.ndarray]] = {}
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        """Returns how another process makes its own."""
        return Cached, (self._load, self._limit_bytes)

    def __call__(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Returns image and mask of a record."""
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


class Rows:
    """A source of examples that are computed when they are asked for."""

    def __init__(self, length: int, example_at: Callable[[int], Example]):
        """Takes the number of rows, and row -> example, a pure function."""
        self._length = length
        self._example_at = example_at

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self._length

    def __getitem__(self, row: int) -> Example:
        """Returns the example of a row."""
        if not 0 <= row < self._length:
            raise IndexError(f"row {row} of {self._length}")
        return self._example_at(int(row))


def source(dataset: Dataset, indices: Sequence[int] | None = None) -> Source:
    """Returns examples of a dataset by row, decoded when asked for.

    Args:
      dataset: Where records and decoded arrays come from.
      indices: Record numbers in row order, for example from `select`; None is all.

    Returns:
      A source of {image uint8 [H, W, 3], mask uint8 {0, 1} [H, W], label, category_id,
      defect_id, index int32}; `index` is the row.

    Raises:
      UserError: A record number is out of range.
    """
    numbers = range(len(dataset.records)) if indices is None else map(int, indices)
    numbers = tuple(numbers)
    outside = [n for n in numbers if not 0 <= n < len(dataset.records)]
    if outside:
        raise UserError(
            f"record numbers {outside[:5]} are outside 0..{len(dataset.records) - 1}"
        )

    def example_at(row: int) -> Example:
        record = dataset.records[numbers[row]]
        image, mask = dataset.load(record)
        return {
            "image": image,
            "mask": mask,
            "label": np.int32(record.defect_type != GOOD),
            "category_id": np.int32(dataset.categories.index(record.category)),
            "defect_id": np.int32(dataset.defect_types.index(record.defect_type)),
            "index": np.int32(row),
        }

    return Rows(len(numbers), example_at)


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
        if value is not None:
            check_known(what, value, names)
    return [
        number
        for number, record in enumerate(dataset.records)
        if split in (None, record.split)
        and category in (None, record.category)
        and defect_type in (None, record.defect_type)
        and anomalous in (None, record.defect_type != GOOD)
    ]


def unmasked(dataset: Dataset, indices: Sequence[int] | None = None) -> dict[str, int]:
    """Counts the defective records (of those given) without a mask, or an empty one.

    Where there are any, pixel metrics have no ground truth.

    Returns:
      {folder that lacks the masks: images}, see `mvtec.unmasked`.
    """
    numbers = range(len(dataset.records)) if indices is None else indices
    records = (dataset.records[number] for number in numbers)
    return mvtec.unmasked(
        record._replace(mask=None) if _is_empty(record, dataset.load) else record
        for record in records
    )


def _is_empty(record: Record, load: Load) -> bool:
    """Whether a mask marks nothing."""
    if record.mask is None or record.defect_type == GOOD:
        return False
    if Path(record.mask).exists():
        return not images.load_mask(mvtec.mask_files(record.mask)).any()
    return not load(record)[1].any()


def _rendered(
    categories: Sequence[str],
    counts: tuple[int, int, int],
    seed: int,
    size: tuple[int, int],
) -> tuple[list[Record], Load]:
    """Returns records of the foundry, and how to render one."""
    from jaxanom.data.layouts import rendered

    plan = rendered.plan(categories, seed, *counts)

    def load(record: Record) -> tuple[np.ndarray, np.ndarray]:
        sample = rendered.sample(plan[record], seed, max(size))
        return (
            images.resize_image(sample.image, size),
            images.resize_mask(sample.mask, size),
        )

    return list(plan), Cached(load)
