"""Terms of the inversion: what a case switches off is off, and detail is what moves."""

import argparse

import jax
import numpy as np
import pytest

from benchmarks.quality.few_shot import token_terms


@pytest.fixture(scope="module")
def given(tiny_backbone):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_terms, "WINDOWS", (1,))  # its CLIP has four patches
        yield token_terms.bench(str(tiny_backbone))


def test_cases_differ_by_the_terms_they_name():
    alone = token_terms.CASES["inversion alone"].options()
    assert not any(getattr(alone, key) for key in token_terms._OFF)
    whole = token_terms.CASES["all terms"].options()
    assert whole == token_terms._DEFAULT
    anchored = token_terms.CASES["+ state + anchor"].options()
    assert anchored.state_weight and anchored.anchor_weight
    assert not anchored.align_weight and not anchored.prior_weight


def test_windows_are_compared_with_themselves_before_a_patch_covered_them(
    given, monkeypatch
):
    monkeypatch.setattr(token_terms, "COVERED", 0.1)  # of a quarter of the image
    seen = token_terms.unseen(given, "pill", 21)
    assert seen.before.shape == seen.after.shape and len(seen.before)
    changed = np.abs(seen.before - seen.after).max(-1)
    assert (changed > 1e-4).mean() > 0.9
    assert seen.label.any() and not seen.label.all()


def test_separation_of_scores():
    assert token_terms.auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4])) == 1.0
    assert token_terms.auroc(np.array([0.3, 0.3]), np.array([0.3, 0.3])) == 0.5


def test_a_case_reports_its_tokens_beside_where_they_began(given):
    settings = argparse.Namespace(categories=["pill"], seeds=1, steps=2, data_seed=21)
    seen = {"pill": token_terms.unseen(given, "pill", 21)}
    case = token_terms.CASES["+ state"]
    found = token_terms.run_case(given, case, settings, seen)
    (token,), (word,) = found["token"], found[token_terms.CLASS_WORD]
    assert token["noise"] != word["noise"]
    assert word["anchor"] == pytest.approx(1.0, abs=1e-5) and token["anchor"] < 1
    assert "state fell" in token and "align fell" not in token
    table = token_terms.table({"+ state": jax.tree.map(lambda x: x, found)})
    assert table.rows[0][0] == "+ state"
