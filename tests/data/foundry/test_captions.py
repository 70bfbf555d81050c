"""Captions name category and state in few words."""

import pytest

from jaxanom.data.foundry import captions, names


@pytest.mark.parametrize("category", names.CATEGORIES)
def test_captions_name_category_and_state(category):
    for kind in names.defect_types(category):
        for index in range(8):
            text = captions.caption(category, "test", index, 0, kind)
            assert captions.words(category) in text
            assert captions.words(kind) in text
            assert "flawless" not in text
    for index in range(8):
        text = captions.caption(category, "test", index, 0, "good")
        assert captions.words(category) in text
        assert not any(captions.words(k) in text for k in names.DEFECT_TYPES)


def test_captions_are_pure_and_vary_with_the_index():
    texts = [captions.caption("wood", "test", i, 0, "crack") for i in range(30)]
    assert texts == [captions.caption("wood", "test", i, 0, "crack") for i in range(30)]
    assert len(set(texts)) == len(captions.DEFECT_TEMPLATES)


def test_vocabulary_stays_small():
    said = set()
    for category in names.CATEGORIES:
        for kind in ("good", *names.defect_types(category)):
            for template in range(6):
                said |= set(captions.describe(category, kind, template).split())
    assert len(said) < 150


def test_articles_fit_the_word_after_them():
    assert captions.with_article("extra part") == "an extra part"
    assert captions.with_article("scratch") == "a scratch"
    for category in names.CATEGORIES:
        # Templates say "a" before every category.
        assert captions.words(category)[0] not in "aeiou"


def test_unknown_words_name_the_nearest():
    assert captions.words("good") == "flawless"
    with pytest.raises(ValueError, match="misplaced_part"):
        captions.words("misplace_part")
