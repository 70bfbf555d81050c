"""What is said of a product: state words, templates, captions, and their layouts.

The counts (7 normal and 4 anomalous states, 22 templates) are WinCLIP's, arXiv
2303.14814; the words are ours. `{}` stands for the product: the personal vectors S*,
or the class word. Captions of the inversion hold no word of condition, which would
collide with the states: the list of arXiv 2208.01618 has some, this one has none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxanom.errors import UserError
from jaxanom.methods.adp import model, objective
from jaxanom.models.clip import prompts
from jaxanom.models.clip.tokenizer import Tokenizer

CONDITION_WORDS = ("dirty", "clean", "weird", "nice", "cool", "good")


class Wording(NamedTuple):
    """Phrases with a place `{}`.

    Attributes:
      normal, anomalous: states of the product.
      templates: sentences around a state.
      whole_captions, part_captions: what the inversion calls a whole image, a crop.
      defects: more anomalous phrases, for captions of synthetic defects.
    """

    normal: tuple[str, ...]
    anomalous: tuple[str, ...]
    templates: tuple[str, ...]
    whole_captions: tuple[str, ...]
    part_captions: tuple[str, ...]
    defects: tuple[str, ...]


_PART = "a close up photo of a part of "

WORDINGS = {
    "full": Wording(
        normal=(
            "{}",
            "intact {}",
            "flawless {}",
            "faultless {}",
            "{} in perfect order",
            "{} free of defects",
            "{} showing no damage",
        ),
        anomalous=(
            "damaged {}",
            "{} with a flaw",
            "{} that has a defect",
            "{} showing damage",
        ),
        templates=(
            "a photo of a {}",
            "a photo of the {}",
            "a photo of one {}",
            "one photo of my {}",
            "a close photo of a {}",
            "a close photo of the {}",
            "a sharp photo of a {}",
            "a sharp photo of the {}",
            "a blurred photo of a {}",
            "a blurred photo of the {}",
            "a dim photo of a {}",
            "a dim photo of the {}",
            "a well lit photo of a {}",
            "a well lit photo of the {}",
            "a grainy photo of a {}",
            "a grainy photo of the {}",
            "a cropped picture of a {}",
            "a cropped picture of the {}",
            "a large picture of a {}",
            "a small picture of a {}",
            "a {} under a camera",
            "the {} under inspection",
        ),
        whole_captions=(
            "a photo of a {}",
            "a picture of a {}",
            "a close photo of a {}",
            "a photo of one {}",
            "a rendering of a {}",
        ),
        part_captions=(
            "a close-up photo of part of a {}",
            "a close-up picture of part of the {}",
            "a close-up photo of part of one {}",
        ),
        defects=(
            "broken {}",
            "cracked {}",
            "scratched {}",
            "stained {}",
            "{} with a hole",
            "{} with a missing part",
        ),
    ),
    # The phrases that the embedded towers were trained on; other words are strange to
    # them, and take several of their 24 tokens each.
    "foundry": Wording(
        normal=("{}", "flawless {}", "perfect {}", "normal {}", "{} without defect"),
        anomalous=("damaged {}", "defective {}", "damaged {} with a crack"),
        templates=(
            "a {}",
            "a photo of a {}",
            "a close up photo of a {}",
        ),
        whole_captions=("a photo of a {}", "a {}"),
        part_captions=(_PART + "a {}", "a close up photo of a {}"),
        defects=(
            "{} with a crack",
            "{} with a scratch",
            "{} with a stain",
            "{} with a hole",
        ),
    ),
}

WRONG_WORDS = ("carpet", "stone", "paper")
"""What a product is called for anomalies that are another thing."""
NORMAL_CAPTION = "a photo of a flawless {}"
NEUTRAL_CAPTION = "a photo of a {}"
ANOMALOUS_CAPTION = "a photo of a damaged {}"


def check(wording: Wording) -> None:
    """Raises UserError where a caption of the inversion speaks of a condition."""
    for caption in (*wording.whole_captions, *wording.part_captions):
        words = set(caption.split()) & set(CONDITION_WORDS)
        if words:
            raise UserError(f"caption {caption!r} holds condition words {words}")


def crossed(states: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Returns every state in every template, [S][M] sentences with a place."""
    return [[template.format(state) for template in templates] for state in states]


def layout(
    sentences: Sequence,
    tokenizer: Tokenizer,
    length: int | None,
    num_vectors: int,
    class_name: str | None = None,
    limit: int = 77,
) -> prompts.Layout:
    """Lays out nested lists of sentences.

    Args:
      sentences: with a place `{}`, nested to any depth, rectangular.
      tokenizer: of the text tower.
      length: L; None is the longest sentence's.
      num_vectors: N, rows of S*.
      class_name: stands in the place; None: all N vectors do.
      limit: longest sentence of the text tower.

    Returns:
      Layout over [..., L], leading axes as nested.

    Raises:
      UserError: a sentence, or the name in it, is too long for the tower.
    """
    table = np.asarray(sentences)
    rows = [
        _one(str(text), tokenizer, num_vectors, class_name) for text in table.ravel()
    ]
    longest = max(len(one.input_ids[0]) for one in rows)
    length = longest if length is None else length
    if max(longest, length) > limit:
        which = max(rows, key=lambda one: len(one.input_ids[0]))
        text = str(table.ravel()[[one is which for one in rows].index(True)])
        if class_name is not None:
            taken = len(tokenizer.words([class_name])[0])
            raise UserError(
                f"the name {class_name!r} takes {taken} tokens; in {text!r} there is "
                f"room for {taken + limit - longest}: choose a shorter name"
            )
        raise UserError(
            f"{text!r} takes {longest} tokens, the text tower reads {limit}; set "
            "config.adp.prompts='foundry' or config.adp.num_vectors lower"
        )

    def stacked(rows: list[np.ndarray], fill: int) -> np.ndarray:
        padded = np.full((len(rows), length), fill, np.int32)
        for line, row in zip(padded, rows, strict=True):
            line[: len(row)] = row
        return padded.reshape(*table.shape, length)

    return prompts.Layout(
        input_ids=stacked([one.input_ids[0] for one in rows], tokenizer.pad_id),
        slots=stacked([one.slots[0] for one in rows], -1),
        eos_positions=np.array([one.eos_positions[0] for one in rows]).reshape(
            table.shape
        ),
        num_vectors=num_vectors,
    )


def _one(
    text: str, tokenizer: Tokenizer, num_vectors: int, class_name: str | None
) -> prompts.Layout:
    place = "{vectors}" if class_name is None else prompts.NAME
    template = prompts.parse(text.replace("{}", place), num_vectors, tokenizer.words)
    names = tokenizer.words([class_name or ""])
    return prompts.make_layout(template, names, tokenizer, num_vectors)


class Texts(NamedTuple):
    """Layouts of one category.

    Attributes:
      normal, anomalous: [S, M] for CLIP.
      named: [4], L columns, for the UNet: normal, neutral, anomalous, empty.
      extra: [E + wrong words] for the UNet, see `defect_sentences`.
    """

    normal: prompts.Layout
    anomalous: prompts.Layout
    named: prompts.Layout
    extra: prompts.Layout


def phrases(name: str, defect_words: Sequence[str]) -> Wording:
    """Returns a set of phrases with the user's own defects added to the anomalous."""
    phrases = WORDINGS[name]
    check(phrases)
    wrong = [word for word in defect_words if "{}" not in word]
    if wrong:
        raise UserError(
            f"config.adp.defect_words has {wrong}; every phrase needs the place {{}}, "
            "such as '{} with rust'"
        )
    extra = tuple(defect_words)
    return phrases._replace(
        anomalous=phrases.anomalous + extra, defects=phrases.defects + extra
    )


def lay_out(
    towers: model.Towers,
    words: Wording,
    num_vectors: int,
    class_name: str | None = None,
) -> Texts:
    """Lays a set of phrases out.

    Args:
      towers: whose tokenizer and lengths count.
      words: the phrases.
      num_vectors: rows of S*.
      class_name: stands in every place; None: S* does.
    """

    def put(sentences, length=None, limit=towers.clip_length):
        return layout(
            sentences, towers.tokenizer, length, num_vectors, class_name, limit
        )

    full = towers.text_length
    captions = [NORMAL_CAPTION, NEUTRAL_CAPTION, ANOMALOUS_CAPTION, ""]
    return Texts(
        normal=put(crossed(words.normal, words.templates)),
        anomalous=put(crossed(words.anomalous, words.templates)),
        named=put(captions, full, full),
        extra=put(defect_sentences(words.defects), full, full),
    )


def training_layouts(
    towers: model.Towers,
    words: Wording,
    texts: Texts,
    num_vectors: int,
    class_name: str | None = None,
) -> objective.Layouts:
    """Returns what the inversion is told: captions by crop level, states by template.

    Both lists of captions are repeated to one length, so that a draw is as likely in
    both. With a class name they speak of that, and no vector is read.
    """
    count = len(words.whole_captions) * len(words.part_captions)
    captions = [
        list(rows) * (count // len(rows))
        for rows in (words.whole_captions, words.part_captions)
    ]
    length = towers.text_length
    laid = layout(captions, towers.tokenizer, length, num_vectors, class_name, length)
    return objective.Layouts(texts.normal, texts.anomalous, laid)


def defect_sentences(defects: Sequence[str]) -> list[str]:
    """Lists the sentences behind the four named ones: defects, then wrong words."""
    return [f"a photo of a {what}" for what in (*defects, *WRONG_WORDS)]


def words_of(category: str) -> str:
    """Returns a folder's name as words: "metal_nut" is a metal nut."""
    return category.replace("_", " ").replace("-", " ").strip()
