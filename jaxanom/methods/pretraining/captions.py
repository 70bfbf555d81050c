"""Caption tables: what is said of an image of category c with defect k.

Templates are general or specific: "a damaged leather" is true of every defective
leather, "a leather with a crack" only of cracked ones; the contrastive loss must know.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.data.foundry import captions

STATE_GOOD = ("a photo of a flawless {category}", "a good {category}")
STATE_DAMAGED = ("a photo of a damaged {category}", "a defective {category}")
NEUTRAL = "a photo of a {category}"
DEFECT_ALONE = "a photo of {defect}"


class Table(NamedTuple):
    """Captions of every (category, defect type).

    Attributes:
      texts: N distinct captions; the first is empty.
      specific: [C, K, S] indices of captions that name category and defect.
      state: [C, 2, R] of captions that name category and good (0) or damaged (1).
      neutral: [C] of captions that name the category alone.
      alone: [K] of captions that name the defect alone; "good" has the empty one.
    """

    texts: tuple[str, ...]
    specific: np.ndarray
    state: np.ndarray
    neutral: np.ndarray
    alone: np.ndarray


def table(categories: tuple[str, ...], defect_types: tuple[str, ...]) -> Table:
    """Writes the captions of every combination, whether the data holds it or not."""
    texts: dict[str, int] = {"": 0}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    count = len(captions.DEFECT_TEMPLATES)
    specific = [
        [
            [number(captions.describe(category, defect, k)) for k in range(count)]
            for defect in defect_types
        ]
        for category in categories
    ]
    state = [
        [
            [
                number(text.format(category=captions.words(category)))
                for text in templates
            ]
            for templates in (STATE_GOOD, STATE_DAMAGED)
        ]
        for category in categories
    ]
    neutral = [number(NEUTRAL.format(category=captions.words(c))) for c in categories]
    alone = [0] + [
        number(
            DEFECT_ALONE.format(defect=captions.with_article(captions.words(defect)))
        )
        for defect in defect_types[1:]
    ]
    return Table(
        tuple(texts),
        *(np.asarray(part, np.int32) for part in (specific, state, neutral, alone)),
    )
