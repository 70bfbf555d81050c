"""The timing benchmark compares equals: PyTorch's loop and our three modes agree."""

import numpy as np
import pytest

from benchmarks.speed import bayes_pfl, bayes_pfl_subject

# Forty seconds of compiling; tests/parity/bayes_pfl compares with the released arrays.
pytestmark = pytest.mark.slow

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def subject():
    return bayes_pfl_subject.make_subject(bayes_pfl_subject.SIZES["small"], 2)


@pytest.fixture(scope="module")
def cases(subject):
    return bayes_pfl.cases_of(subject, bayes_pfl.make_torch(subject))


def test_losses_gradients_and_maps_agree_with_the_plain_loop(cases):
    facts = {case.name: case.facts for case in cases}
    for mode in bayes_pfl.MODES:
        step, image = facts[f"step, {mode}"], facts[f"image, {mode}"]
        # float32 in two libraries; observed 4e-7, 5e-6, 3e-7 and 3e-7.
        assert step["loss_difference"] < 1e-5
        assert step["gradient_difference"] < 1e-4
        assert image["score_difference"] < 1e-5
        assert image["map_difference"] < 1e-5


def test_a_wrong_gradient_would_show(subject):
    """Negative control of the comparison."""
    wanted = bayes_pfl.make_torch(subject).loss_and_grads()
    found = {name: np.array(leaf) for name, leaf in wanted[1].items()}
    assert bayes_pfl.compare_step((wanted[0], found), wanted) == {
        "loss_difference": 0.0,
        "gradient_difference": 0.0,
    }
    name = max(found, key=lambda key: np.abs(found[key]).max())
    found[name] = found[name] * 1.01
    differences = bayes_pfl.compare_step((wanted[0] * 1.01, found), wanted)
    assert min(differences.values()) > 5e-3


def test_every_mode_costs_less_than_the_one_before(cases):
    shares = {case.name: case.facts.get("flops_share") for case in cases}
    for kind in ("step", "image"):
        plain, exact, cached = (shares[f"{kind}, {mode}"] for mode in bayes_pfl.MODES)
        assert plain == 1 and cached < exact < 0.5


def test_ratios_are_to_the_plain_form_and_to_pytorch_of_the_same_kind():
    rows = [
        {"case": "step, PyTorch", "median_s": 6.0},
        {"case": "step, plain", "median_s": 4.0},
        {"case": "step, cached", "median_s": 0.5},
        {"case": "image, plain", "median_s": 1.0},
    ]
    found = {row["case"]: row for row in bayes_pfl.with_ratios(rows)}
    assert found["step, cached"]["times_plain"] == 8
    assert found["step, cached"]["times_torch"] == 12
    assert found["image, plain"]["times_plain"] == 1
    assert "times_torch" not in found["image, plain"]
