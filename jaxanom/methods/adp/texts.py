"""Sentences of a run as layouts: around S*, or around each category's plain name."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxanom.errors import UserError
from jaxanom.methods.adp import model, objective, synthesis, wording
from jaxanom.models.clip import prompts


class Texts(NamedTuple):
    """Layouts of one category.

    Attributes:
      normal, anomalous: [S, M] for CLIP.
      named: [4], L columns, for the UNet: normal, neutral, anomalous, empty.
      extra: [E + wrong words] for the UNet, see `synthesis.context_sentences`.
    """

    normal: prompts.Layout
    anomalous: prompts.Layout
    named: prompts.Layout
    extra: prompts.Layout


def phrases(name: str, defect_words: Sequence[str]) -> wording.Wording:
    """Returns a set of phrases with the user's own defects added to the anomalous."""
    chosen = wording.WORDINGS[name]
    wording.check(chosen)
    wrong = [word for word in defect_words if "{}" not in word]
    if wrong:
        raise UserError(
            f"config.adp.defect_words has {wrong}; every phrase needs the place {{}}, "
            "such as '{} with rust'"
        )
    extra = tuple(defect_words)
    return chosen._replace(
        anomalous=chosen.anomalous + extra, defects=chosen.defects + extra
    )


def lay_out(
    towers: model.Towers,
    words: wording.Wording,
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
        return wording.layout(
            sentences, towers.tokenizer, length, num_vectors, class_name, limit
        )

    full = towers.text_length
    captions = [
        wording.NORMAL_CAPTION,
        wording.NEUTRAL_CAPTION,
        wording.ANOMALOUS_CAPTION,
        "",
    ]
    return Texts(
        normal=put(wording.crossed(words.normal, words.templates)),
        anomalous=put(wording.crossed(words.anomalous, words.templates)),
        named=put(captions, full, full),
        extra=put(synthesis.context_sentences(words.defects), full, full),
    )


def training_layouts(
    towers: model.Towers,
    words: wording.Wording,
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
    laid = wording.layout(
        captions, towers.tokenizer, length, num_vectors, class_name, length
    )
    return objective.Layouts(texts.normal, texts.anomalous, laid)
