"""Caption tables: what is said of an image of category c with defect k.

Templates are general or specific: "a damaged leather" is true of every defective
leather, "a leather with a crack" only of cracked ones; the contrastive loss must know.
"""

from typing import NamedTuple

import numpy as np

from jaxanom.data.foundry import captions

STATES = (
    ("a photo of a flawless {category}", "a good {category}"),
    ("a photo of a damaged {category}", "a defective {category}"),
)
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

    def numbers(self) -> dict[str, np.ndarray]:
        """Returns all but the texts, by name."""
        return {name: part for name, part in self._asdict().items() if name != "texts"}


def table(categories: tuple[str, ...], defect_types: tuple[str, ...]) -> Table:
    """Writes the captions of every combination, whether the data holds it or not."""
    texts: dict[str, int] = {"": 0}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    templates = range(len(captions.DEFECT_TEMPLATES))
    words = [captions.words(category) for category in categories]
    specific = [
        [
            [number(captions.describe(c, defect, k)) for k in templates]
            for defect in defect_types
        ]
        for c in categories
    ]
    state = [
        [
            [number(text.format(category=word)) for text in texts_of]
            for texts_of in STATES
        ]
        for word in words
    ]
    neutral = [number(NEUTRAL.format(category=word)) for word in words]
    names = [captions.with_article(captions.words(kind)) for kind in defect_types[1:]]
    alone = [0] + [number(DEFECT_ALONE.format(defect=name)) for name in names]
    parts = (np.asarray(part, np.int32) for part in (specific, state, neutral, alone))
    return Table(tuple(texts), *parts)
