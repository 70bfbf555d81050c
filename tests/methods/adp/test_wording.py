import re

import pytest

from jaxanom.methods.adp import texts, wording


@pytest.mark.parametrize("name", wording.WORDINGS)
def test_no_caption_of_the_inversion_speaks_of_a_condition(name):
    wording.check(wording.WORDINGS[name])


def test_a_condition_word_in_a_caption_is_caught():
    """Negative control: the list of textual inversion's own code has such captions."""
    bad = wording.WORDINGS["full"]._replace(whole_captions=("a photo of a clean {}",))
    with pytest.raises(ValueError, match="clean"):
        wording.check(bad)


def test_the_full_set_has_winclips_counts_and_no_phrase_twice():
    full = wording.WORDINGS["full"]
    assert len(set(full.normal)) == 7 and len(set(full.anomalous)) == 4
    assert len(set(full.templates)) == 22


@pytest.mark.parametrize("name", wording.WORDINGS)
def test_every_phrase_has_one_place(name):
    for field in wording.WORDINGS[name]:
        for phrase in field:
            assert len(re.findall(r"\{\}", phrase)) == 1, phrase


def test_states_are_crossed_with_templates():
    found = wording.crossed(("{}", "torn {}"), ("a {}", "one {}"))
    assert found == [["a {}", "one {}"], ["a torn {}", "one torn {}"]]


def test_defect_words_join_the_anomalous_phrases():
    words = texts.phrases("foundry", ("{} with rust",))
    assert words.anomalous[-1] == words.defects[-1] == "{} with rust"
    with pytest.raises(ValueError, match="needs the place"):
        texts.phrases("foundry", ("rust",))


def test_folder_names_become_words():
    assert wording.words_of("metal_nut") == "metal nut"
