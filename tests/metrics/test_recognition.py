import numpy as np
import pytest

from jaxanom.metrics import recognition
from jaxanom.types import ClassPredictions, Predictions


def predictions(probability, disagreement=0.0):
    probability = np.asarray(probability, np.float32)
    rows = np.full(len(probability), disagreement, np.float32)
    classes = ClassPredictions(probability, rows, rows, np.zeros_like(probability))
    return Predictions(rows[:, None, None], rows, classes=classes)


def measured(probability, target, valid=None, cuts=()):
    metric = recognition.exact("label")
    state, start = metric.init(), 0
    valid = np.ones(len(target), bool) if valid is None else np.asarray(valid)
    for stop in (*cuts, len(target)):
        rows = slice(start, stop)
        batch = {"label": np.asarray(target)[rows], "valid": valid[rows]}
        given = predictions(np.asarray(probability)[rows], 0.25)
        state, start = metric.update(state, given, batch), stop
    return metric.finalize(state)


PROBABILITY = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]
TARGET = [0, 1, 1, 0]


def test_accuracy_and_likelihood_by_hand():
    found = measured(PROBABILITY, TARGET)
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean(), rel=1e-6)
    assert found["mutual_information"] == 0.25


def test_batches_and_padding_change_nothing():
    whole = measured(PROBABILITY, TARGET)
    assert measured(PROBABILITY, TARGET, cuts=(1, 3)) == whole
    padded = measured(
        [*PROBABILITY, [1.0, 0.0]], [*TARGET, 1], [True] * 4 + [False], cuts=(2,)
    )
    assert padded == whole
    assert measured([*PROBABILITY, [1.0, 0.0]], [*TARGET, 1]) != whole


def test_calibration_error_by_hand():
    # Two bins: (0, 0.5] holds one miss at 0.4, (0.5, 1] a hit at 0.6 and one at 0.9.
    found = recognition.calibration_error([0.4, 0.6, 0.9], [0, 1, 1], num_bins=2)
    assert found == pytest.approx((0.4 + abs(1.5 - 2)) / 3)
    assert recognition.calibration_error([1.0, 1.0], [1, 1]) == 0.0
    assert recognition.calibration_error([1.0, 1.0], [0, 0]) == 1.0


def test_draws_of_the_stated_probability_are_calibrated():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1.0, 20_000)
    hits = rng.random(20_000) < confidence
    # Each of 15 bins of some 2000 is off by 0.01 at chance.
    assert recognition.calibration_error(confidence, hits) < 0.02
    assert recognition.calibration_error(np.sqrt(confidence), hits) > 0.05


def test_a_certain_mistake_has_a_finite_likelihood():
    assert np.isfinite(measured([[1.0, 0.0]], [1])["nll"])


def test_no_images_have_no_numbers():
    found = recognition.exact("label").finalize(recognition.exact("label").init())
    assert all(np.isnan(value) for value in found.values())


def test_probabilities_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        measured([[np.nan, 1.0]], [0])


def test_the_harmonic_mean_is_that_of_two():
    assert recognition.harmonic_mean(0.8, 0.6) == pytest.approx(2 * 0.48 / 1.4)
    assert recognition.harmonic_mean(0.0, 0.0) == 0.0
