"""The spread as a detector of errors: against sklearn-free ranks of known cases."""

import numpy as np
import pytest
from scipy import stats

from jaxanom.metrics import uncertainty
from jaxanom.types import Predictions

SHAPE = (3, 8, 8)


def measured(metric, found, spread, mask, valid=None):
    valid = np.ones(len(mask), bool) if valid is None else valid
    state = metric.init()
    for row in range(len(mask)):
        one = slice(row, row + 1)
        predictions = Predictions(
            found[one], found[one].max((1, 2)), None if spread is None else spread[one]
        )
        batch = {"mask": mask[one], "valid": valid[one]}
        state = metric.update(state, predictions, batch)
    return metric.finalize(state)


def rank_auroc(values, wrong):
    """Mann-Whitney from ranks."""
    ranks = stats.rankdata(values.ravel())
    positive = wrong.ravel()
    count = positive.sum()
    low = ranks[positive].sum() - count * (count + 1) / 2
    return low / (count * (~positive).sum())


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    # Few mantissa bits: the histogram rounds to 9, here nothing is lost.
    found = rng.integers(0, 65, SHAPE).astype(np.float32) / 64
    spread = rng.integers(1, 65, SHAPE).astype(np.float32) / 64
    return found, spread, rng.integers(0, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_it_is_the_rank_statistic_of_wrong_pixels(drawn, threshold):
    found, spread, mask = drawn
    wrong = (found > threshold) != (mask >= 0.5)
    result = measured(uncertainty.error_detection(threshold), found, spread, mask)
    assert result["pixel_error_rate"] == pytest.approx(wrong.mean())
    # Integer counts on both sides.
    assert result["pixel_error_auroc"] == pytest.approx(rank_auroc(spread, wrong))
    nearness = -np.abs(found - threshold)
    assert result["pixel_error_auroc_of_mean"] == pytest.approx(
        rank_auroc(nearness, wrong)
    )


def test_a_spread_that_marks_the_errors_scores_one_and_its_opposite_zero(drawn):
    found, _, mask = drawn
    wrong = (found > 0.5) != (mask >= 0.5)
    metric = uncertainty.error_detection()
    for spread, wanted in ((wrong, 1.0), (~wrong, 0.0), (np.ones(SHAPE), 0.5)):
        spread = spread.astype(np.float32)
        result = measured(metric, found, spread, mask)
        assert result["pixel_error_auroc"] == wanted


def test_padding_rows_count_nowhere(drawn):
    found, spread, mask = drawn
    metric = uncertainty.error_detection(prefix="e")
    kept = measured(metric, found, spread, mask, np.array([True, True, False]))
    assert kept == measured(metric, found[:2], spread[:2], mask[:2])
    assert kept != measured(metric, found, spread, mask)  # negative control


def test_without_a_spread_or_a_mask_there_is_no_result(drawn):
    found, spread, mask = drawn
    metric = uncertainty.error_detection()
    assert measured(metric, found, None, mask) == {}
    predictions = Predictions(found, found.max((1, 2)), spread)
    state = metric.update(metric.init(), predictions, {"valid": np.ones(3, bool)})
    assert metric.finalize(state) == {}
