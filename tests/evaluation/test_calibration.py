import numpy as np
import pytest

from jaxanom.evaluation import calibration


def alarms(threshold_of, num_normal, num_trials=4000):
    """Share of fresh normal images called anomalous, over many calibrations."""
    scores = np.random.default_rng(0).gumbel(size=(num_trials, num_normal + 1))
    values = np.array([threshold_of(row[:-1]) for row in scores])
    return float((scores[:, -1] > values).mean())


@pytest.mark.parametrize("num_normal", [1, 9, 19, 60])
def test_false_alarms_stay_below_the_stated_bound(num_normal):
    bound = calibration.from_normals(np.arange(num_normal), 0.1).false_alarm_rate
    found = alarms(lambda s: calibration.from_normals(s, 0.1).value, num_normal)
    # A share of 4000 trials has a deviation of at most 0.008; 4 of them.
    assert found <= bound + 0.032
    assert abs(found - bound) <= 0.032, "exchangeable scores meet the bound exactly"


def test_negative_control_the_plain_quantile_breaks_the_bound():
    found = alarms(lambda s: np.quantile(s, 0.9), 9)
    assert found > 0.1 + 0.032


def test_few_images_promise_only_what_they_can():
    found = calibration.from_normals([3.0, 1.0, 2.0], 0.05)
    assert found == (3.0, 0.25, 3)
    assert calibration.from_normals(np.arange(1.0, 20.0), 0.05).value == 19.0
    assert calibration.from_normals(np.arange(1.0, 40.0), 0.05).value == 38.0


@pytest.mark.parametrize("scores", [[], [1.0, np.nan]])
def test_scores_that_cannot_calibrate_are_refused(scores):
    with pytest.raises(ValueError, match="normal scores"):
        calibration.from_normals(scores)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(ValueError, match="false_alarm_rate"):
        calibration.from_normals([1.0], rate)
