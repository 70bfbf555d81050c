"""Captions that name category and state, from a small vocabulary."""

from jaxanom.data.foundry import names
from jaxanom.data.foundry.noise import stream
from jaxanom.errors import check_known

_CATEGORY_WORDS = {
    "grid": "wire grid",
    "metal": "brushed metal",
    "fabric": "woven fabric",
    "nut": "hex nut",
    "chip": "circuit chip",
    "cap": "bottle cap",
    "juice_bottle": "juice bottle",
    "tray": "parts tray",
}

_DEFECT_WORDS = {"good": "flawless", "floating": "floating blob", "rust": "rust spot"}

GOOD_TEMPLATES = (
    "a photo of a flawless {category}",
    "a flawless {category}",
    "a photo of a good {category}",
    "a {category} without defect",
    "a photo of a perfect {category}",
    "a close up photo of a normal {category}",
)

DEFECT_TEMPLATES = (
    "a photo of a {category} with {defect}",
    "a {category} with {defect}",
    "{defect} on a {category}",
    "a damaged {category} with {defect}",
    "a close up photo of a {category} with {defect}",
    "a photo of a defective {category} with {defect}",
)


def words(name: str) -> str:
    """The words by which captions call a category, a defect type, or "good"."""
    if name in names.CATEGORIES:
        return _CATEGORY_WORDS.get(name, name)
    check_known("name", name, ("good", *names.DEFECT_TYPES, *names.CATEGORIES))
    return _DEFECT_WORDS.get(name, name.replace("_", " "))


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def describe(category: str, defect_type: str, template: int) -> str:
    """The caption of a state in template number `template`, counted modulo."""
    if defect_type == "good":
        text = GOOD_TEMPLATES[template % len(GOOD_TEMPLATES)]
        return text.format(category=words(category))
    text = DEFECT_TEMPLATES[template % len(DEFECT_TEMPLATES)]
    return text.format(
        category=words(category), defect=with_article(words(defect_type))
    )


def caption(category: str, split: str, index: int, seed: int, defect_type: str) -> str:
    """The caption of an image: a pure function of what names it."""
    template = stream(seed, category, split, index, "caption").integers(1 << 16)
    return describe(category, defect_type, int(template))
