"""V4: every regularisation term equals a plain NumPy loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.adp import objective
from jaxanom.methods.adp.memory import crops
from jaxanom.methods.adp.token import inversion

RNG = np.random.default_rng(8)


def unit(*shape):
    found = RNG.normal(size=shape)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


FEATURES, NORMAL, ANOMALOUS = unit(7, 5), unit(5), unit(5)
WEIGHTS = RNG.dirichlet(np.ones(7)).astype(np.float32)
TOLERANCE = 1e-5  # float32, sums of seven terms, logits over tau = 0.07


def test_align_equals_a_loop():
    wanted = sum(
        s * (1 - float(f @ NORMAL)) for s, f in zip(WEIGHTS, FEATURES, strict=True)
    )
    assert objective.align(FEATURES, WEIGHTS, NORMAL) == pytest.approx(
        wanted, abs=TOLERANCE
    )


def test_state_equals_a_loop_and_its_counterpart_does_not():
    tau, wanted = 0.07, 0.0
    for s, f in zip(WEIGHTS, FEATURES, strict=True):
        logits = np.array([f @ NORMAL, f @ ANOMALOUS], np.float64) / tau
        wanted -= s * (logits[0] - np.log(np.exp(logits).sum()))
    found = objective.state(FEATURES, WEIGHTS, NORMAL, ANOMALOUS, tau)
    assert found == pytest.approx(wanted, rel=TOLERANCE)
    other = objective.state(FEATURES, WEIGHTS, ANOMALOUS, NORMAL, tau)
    assert abs(float(other) - wanted) > 0.1


def test_anchor_is_0_for_the_class_words_own_direction_and_2_for_its_opposite():
    a, b = unit(5), unit(5)
    assert objective.anchor(a, b, a, b) == pytest.approx(0, abs=TOLERANCE)
    assert objective.anchor(a, b, b, a) == pytest.approx(2, abs=TOLERANCE)
    d, e = b - a, ANOMALOUS - NORMAL
    wanted = 1 - float(d @ e) / (np.linalg.norm(d) * np.linalg.norm(e))
    found = objective.anchor(a, b, NORMAL, ANOMALOUS)
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_prior_is_the_squared_norm_over_all_vectors():
    first, second = RNG.normal(size=(2, 3, 4))
    wanted = sum((first[i, j] - second[i, j]) ** 2 for i in range(3) for j in range(4))
    assert objective.prior(first, second) == pytest.approx(wanted, rel=TOLERANCE)


def test_support_favours_what_the_shots_share():
    shared, own = unit(4), unit(2, 4)
    features = np.stack([shared, own[0], shared, own[1]])
    weights = inversion.support(features, np.array([0, 0, 1, 1]))
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights[0] > weights[1] and weights[2] > weights[3]
    alone = inversion.support(features, np.zeros(4, int))
    np.testing.assert_allclose(alone, 0.25)


def test_crops_are_drawn_from_shots_that_count_and_every_level_alike():
    pyramid = crops.pyramid((1, 2))
    shot, crop, is_part = objective.draw_crops(
        jax.random.key(0), 4000, jnp.int32(2), pyramid
    )
    assert set(np.asarray(shot).tolist()) == {0, 1}
    assert int(crop.max()) == 9 and bool(jnp.all((crop > 0) == is_part))
    # Half of 4000 draws; four standard errors.
    assert float(is_part.mean()) == pytest.approx(0.5, abs=0.032)


def test_the_low_noise_bias_halves_half_of_the_timesteps():
    plain = objective.draw_timesteps(jax.random.key(1), 4000, 1000, False)
    low = objective.draw_timesteps(jax.random.key(1), 4000, 1000, True)
    assert float(plain.mean()) == pytest.approx(500, abs=20)  # four standard errors
    assert float((low < 500).mean()) == pytest.approx(0.75, abs=0.03)
    assert int(low.max()) < 1000
