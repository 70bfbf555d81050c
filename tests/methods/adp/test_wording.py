import re

import pytest

from jaxanom.methods.adp.token import wording


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
    words = wording.phrases("foundry", ("{} with rust",))
    assert words.anomalous[-1] == words.defects[-1] == "{} with rust"
    with pytest.raises(ValueError, match="needs the place"):
        wording.phrases("foundry", ("rust",))


def test_a_name_that_is_too_long_is_blamed_and_told_its_room(parts):
    name = wording.words_of("M6-hexagonal-socket-head-cap-screw")
    with pytest.raises(ValueError, match=f"the name '{name}' takes") as caught:
        wording.lay_out(parts.towers, parts.words, 2, name)
    taken, room = map(int, re.findall(r"takes (\d+) .* room for (\d+)", str(caught))[0])
    assert len(parts.towers.tokenizer.words([name])[0]) == taken > room
    sentences = re.findall(r"in '(.*?)' there", str(caught))

    def put(word_count):
        # "x" is one token; the sentence is full with as many as there is room for.
        told = ("x " * word_count).strip()
        limit = parts.towers.clip_length
        tokens = parts.towers.tokenizer
        return wording.layout(sentences, tokens, None, 2, told, limit).input_ids.shape

    assert put(room) == (1, parts.towers.clip_length)
    with pytest.raises(ValueError, match="choose a shorter name"):
        put(room + 1)


def test_folder_names_become_words():
    assert wording.words_of("metal_nut") == "metal nut"
