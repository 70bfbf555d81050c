"""Diagonal Gaussians against scipy and against their own samples."""

import numpy as np
from scipy import stats

from jaxanom.posterior import gaussian

MEAN, VARIANCE = np.array([0.5, -2.0, 1.0]), np.array([0.2, 3.0, 1.0])
CONSTANT = 1.5 * np.log(2 * np.pi)


def test_log_densities_are_scipys_up_to_the_constant():
    point = np.array([[0.1, -1.0, 2.0], [2.0, 0.0, 1.0]])
    wanted = stats.multivariate_normal(MEAN, np.diag(VARIANCE)).logpdf(point)
    found = gaussian.logdensity(point, MEAN, VARIANCE)
    np.testing.assert_allclose(found - CONSTANT, wanted, rtol=1e-5)
    standard = stats.multivariate_normal(np.zeros(3)).logpdf(point)
    np.testing.assert_allclose(
        gaussian.standard_logdensity(point) - CONSTANT, standard, rtol=1e-5
    )
    # Negative control: a variance is not a deviation.
    other = gaussian.logdensity(point, MEAN, np.sqrt(VARIANCE))
    assert np.abs(other - CONSTANT - wanted).max() > 0.05


def test_draws_have_the_mean_and_the_variance():
    noise = np.random.default_rng(0).normal(size=(20_000, 3))
    drawn = np.asarray(gaussian.draw(MEAN, VARIANCE, noise))
    # Standard errors: sqrt(v / n) <= 0.013, v sqrt(2 / n) <= 0.03.
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(drawn.var(0), VARIANCE, rtol=0.05)
