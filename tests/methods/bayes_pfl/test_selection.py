"""Choosing a model by labelled target images: it works, and the record says so."""

import numpy as np
import pytest
from tiny_bayes_pfl import SIZE, config

import jaxanom
from jaxanom import record
from jaxanom.training import selection


def settings(backbone, rule):
    found = config(backbone)
    found.data.image_size = SIZE
    found.data.num_views, found.data.flips = 1, ()
    found.selection.rule = rule
    found.selection.every = 1
    found.selection.categories = ("pill",)
    for phase in found.phases.values():
        phase.num_steps, phase.learning_rate = 3, 0.05
    return found


def test_the_authors_rule_keeps_the_best_and_is_recorded(tiny_backbone, tmp_path):
    run = jaxanom.train(settings(tiny_backbone, "authors"), tmp_path / "run")
    facts = record.read_json(run.directory / record.RECORD)["selection"]
    assert facts["rule"] == "authors"
    assert facts["labelled_test_categories"] == ["pill"] and facts["num_images"] > 2
    measured = {
        phase: selection.history(run.directory, phase) for phase in ("stage1", "stage2")
    }
    assert [step for step, _ in measured["stage1"]] == [1, 2, 3]
    assert len(measured["stage2"]) == 3
    results = jaxanom.evaluate(run, num_examples=0)
    assert results["selected_on"] == ["pill"]
    # "pill" is all that is tested here: the chosen parameters measure what was noted,
    # up to draws, 5 there and 3 here.
    best = max(value for _, value in measured["stage2"])
    assert results["mean"]["image_ap"] == pytest.approx(best, abs=0.1)


def test_the_last_step_is_the_default_and_measures_nothing(tiny_backbone, tmp_path):
    run = jaxanom.train(settings(tiny_backbone, "last"), tmp_path / "run")
    assert not (run.directory / selection.FOLDER).exists()
    assert "selection" not in record.read_json(run.directory / record.RECORD)
    assert "selected_on" not in jaxanom.evaluate(run, num_examples=0)
    with pytest.raises(ValueError, match=r"chip.*not among the tested ones"):
        asked = settings(tiny_backbone, "authors")
        asked.selection.categories = ("chip",)
        jaxanom.train(asked, tmp_path / "other")
    # What was refused must not stand in the way of the next config.
    assert not (tmp_path / "other" / record.CONFIG).exists()
    assert np.isfinite(run.params["prompts"]["context"]).all()
