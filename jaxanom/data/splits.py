"""Seeded few-shot selections.

A selection depends on the seed, the category (or defect type) and the images there are,
not on which other categories were opened; with one seed, the selection of fewer shots
is part of the selection of more.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxanom.data import catalog
from jaxanom.data.catalog import Dataset
from jaxanom.data.layouts.mvtec import GOOD
from jaxanom.errors import UserError, check_known

RULES = ("first_third", "shots_per_type", "shots")


def few_shot(dataset: Dataset, category: str, shots: int, seed: int) -> tuple[int, ...]:
    """Draws `shots` normal training images of a category: record numbers, ascending.

    Raises:
      UserError: unknown category, fewer than one shot, or more than there are images.
    """
    numbers = catalog.select(dataset, "train", category, anomalous=False)
    where = f"{category!r} has {len(numbers)} normal training images"
    _check_shots(shots, len(numbers), where)
    return _draw(numbers, shots, seed, category)


def drawn_defects(
    dataset: Dataset, category: str, rule: str, shots: int | None = None, seed: int = 0
) -> tuple[int, ...]:
    """Draws those of a category's defective test images that may be trained on.

    Args:
      dataset: Holds the category.
      category: Whose images to draw from.
      rule: "first_third": of every defect type the first floor(n / 3) images by file
        number (the division of AnomalyDiffusion, arXiv 2312.05767, whose released
        loader takes one image more, which is in its test part as well);
        "shots_per_type": `shots` drawn images of every type;
        "shots": `shots` drawn images in all, as equal over the types as there are
        images.
      shots: How many the last two rules draw.
      seed: Decides the draws.

    Returns:
      Their record numbers, ascending; the others, and all good images, stay to be
      tested on.

    Raises:
      UserError: unknown category or rule, a category without defects, more shots than
        images, or a rule that leaves no image to train on.
    """
    check_known("rule", rule, RULES)
    by_type = {
        kind: numbers
        for kind in dataset.defect_types
        if kind != GOOD and (numbers := catalog.select(dataset, "test", category, kind))
    }
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
    else:
        counts = _counts(by_type, category, rule, shots, seed)
        train = [
            number
            for kind, numbers in by_type.items()
            for number in _draw(numbers, counts[kind], seed, f"{category}/{kind}")
        ]
    return tuple(sorted(train))


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
