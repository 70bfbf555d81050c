"""Decorrelation: known values, and what must not matter."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.losses import orthogonality


def features(rows=3, entries=4, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(rows, entries, 6)), jnp.float32)


def test_equal_features_orthogonal_features_and_one_alone():
    same = jnp.ones((2, 4, 6))
    assert float(orthogonality.squared_cosine(same)) == pytest.approx(3 / 4)
    assert float(orthogonality.squared_cosine(jnp.eye(4)[None])) == 0
    assert float(orthogonality.squared_cosine(same[:, :1])) == 0


def test_opposite_features_count_as_equal_ones():
    pair = jnp.stack([jnp.ones(6), -jnp.ones(6)])[None]
    assert float(orthogonality.squared_cosine(pair)) == pytest.approx(1 / 2)


def test_length_does_not_matter_and_padding_rows_do_not_count():
    rows = features()
    wanted = float(orthogonality.squared_cosine(rows))
    scaled = rows * jnp.arange(1.0, 5.0)[None, :, None]
    assert float(orthogonality.squared_cosine(scaled)) == pytest.approx(
        wanted, rel=1e-5
    )
    valid = jnp.array([True, True, False])
    alone = float(orthogonality.squared_cosine(rows[:2]))
    found = float(orthogonality.squared_cosine(rows, valid))
    assert found == pytest.approx(alone, rel=1e-5)
    assert wanted != pytest.approx(alone, rel=1e-2)
