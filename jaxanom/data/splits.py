"""Seeded few-shot selections, listed by name for the run record.

A selection depends on the seed, the category (or defect type) and the images there are,
not on which other categories were opened; with one seed, the selection of fewer shots
is part of the selection of more.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxanom.data import catalog
from jaxanom.data.catalog import Dataset
from jaxanom.data.layouts.mvtec import GOOD, unknown
from jaxanom.errors import UserError

RULES = ("first_third", "shots_per_type", "shots")


class Split(NamedTuple):
    """Normal images to learn from.

    Attributes:
      support: record numbers of normal training images, ascending.
      names: their record names.
    """

    support: tuple[int, ...]
    names: tuple[str, ...]


class DefectSplit(NamedTuple):
    """Which of a category's test images may be trained on.

    Attributes:
      train: record numbers of defective images to train on, ascending.
      test: record numbers of all other test images, good ones included, ascending.
      train_names, test_names: their record names.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]


def few_shot(dataset: Dataset, category: str, shots: int, seed: int) -> Split:
    """Chooses `shots` normal training images of a category.

    Raises:
      UserError: unknown category, fewer than one shot, or more than there are images.
    """
    numbers = catalog.select(dataset, "train", category, anomalous=False)
    where = f"{category!r} has {len(numbers)} normal training images"
    _check_shots(shots, len(numbers), where)
    support = _draw(numbers, shots, seed, category)
    return Split(support, _names(dataset, support))


def defect_split(
    dataset: Dataset, category: str, rule: str, shots: int | None = None, seed: int = 0
) -> DefectSplit:
    """Divides a category's defective test images into training and test images.

    Good test images always stay in the test part.

    Args:
      dataset: holds the category.
      category: whose images to divide.
      rule: "first_third": of every defect type the first floor(n / 3) images by file
        number (the division of AnomalyDiffusion, arXiv 2312.05767, whose released
        loader takes one image more, which is in its test part as well);
        "shots_per_type": `shots` drawn images of every type;
        "shots": `shots` drawn images in all, as equal over the types as there are
        images.
      shots: for the last two rules.
      seed: Decides the draws.

    Raises:
      UserError: unknown category or rule, a category without defects, more shots than
        images, or a rule that leaves no image to train on.
    """
    by_type = _defects_by_type(dataset, category)
    if not by_type:
        raise UserError(f"category {category!r} has no defective images")
    if rule == "first_third":
        if shots is not None:
            raise UserError(f"rule 'first_third' takes no shots, got shots={shots}")
        counts = {kind: len(numbers) // 3 for kind, numbers in by_type.items()}
        train = [n for kind, c in counts.items() for n in by_type[kind][:c]]
        if not train:
            raise UserError(
                f"rule 'first_third' takes no image of {category!r}: every defect type "
                "has fewer than 3; use 'shots_per_type'"
            )
    elif rule in ("shots_per_type", "shots"):
        counts = _counts(by_type, category, rule, shots, seed)
        train = [
            number
            for kind, numbers in by_type.items()
            for number in _draw(numbers, counts[kind], seed, f"{category}/{kind}")
        ]
    else:
        raise UserError(unknown("rule", rule, RULES))
    train = tuple(sorted(train))
    taken = set(train)
    test = tuple(n for n in catalog.select(dataset, "test", category) if n not in taken)
    return DefectSplit(train, test, _names(dataset, train), _names(dataset, test))


def describe(split: Split | DefectSplit) -> dict[str, list[Any]]:
    """Returns a split as JSON-able lists for the run record."""
    return {key: list(value) for key, value in split._asdict().items()}


def _defects_by_type(dataset: Dataset, category: str) -> dict[str, list[int]]:
    by_type = {
        kind: catalog.select(dataset, "test", category, kind)
        for kind in dataset.defect_types
        if kind != GOOD
    }
    return {kind: numbers for kind, numbers in by_type.items() if numbers}


def _counts(
    by_type: dict[str, list[int]],
    category: str,
    rule: str,
    shots: int | None,
    seed: int,
) -> dict[str, int]:
    """Returns how many images of each defect type to draw."""
    if shots is None:
        raise UserError(f"rule {rule!r} needs shots")
    if rule == "shots_per_type":
        for kind, numbers in by_type.items():
            where = f"defect type {kind!r} of {category!r} has {len(numbers)} images"
            _check_shots(shots, len(numbers), where)
        return dict.fromkeys(by_type, shots)
    total = sum(map(len, by_type.values()))
    _check_shots(shots, total, f"{category!r} has {total} defective images")
    counts = dict.fromkeys(by_type, 0)
    kinds = sorted(by_type)
    # One type after another in a drawn order, until all shots are dealt.
    order = [kinds[i] for i in _generator(seed, category).permutation(len(kinds))]
    while shots:
        for kind in order:
            if shots and counts[kind] < len(by_type[kind]):
                counts[kind] += 1
                shots -= 1
    return counts


def _check_shots(shots: int, available: int, where: str) -> None:
    if not 1 <= shots <= available:
        raise UserError(f"shots={shots}, but {where}; wanted 1 to {available}")


def _draw(numbers: Sequence[int], shots: int, seed: int, what: str) -> tuple[int, ...]:
    order = _generator(seed, what).permutation(len(numbers))
    return tuple(sorted(numbers[i] for i in order[:shots]))


def _generator(seed: int, what: str) -> np.random.Generator:
    words = np.random.SeedSequence([seed, zlib.crc32(what.encode())])
    return np.random.Generator(np.random.Philox(words))


def _names(dataset: Dataset, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(dataset.records[number].name for number in numbers)
