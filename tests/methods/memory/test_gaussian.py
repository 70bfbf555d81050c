import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.memory import gaussian


def by_numpy(features, query, shrinkage):
    """The same in float64, position by position."""
    features, query = features.astype(np.float64), query.astype(np.float64)
    count, height, width, depth = features.shape
    middle = features.mean((0, 1, 2))
    rows = (features - middle).reshape(-1, depth)
    whole = rows.T @ rows / len(rows)
    away = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            around = features[:, i, j] - features[:, i, j].mean(0)
            covariance = (around.T @ around + shrinkage * whole) / (count + shrinkage)
            covariance += gaussian.RIDGE * np.trace(whole) / depth * np.eye(depth)
            x = query[i, j] - features[:, i, j].mean(0)
            away[i, j] = np.sqrt(x @ np.linalg.solve(covariance, x))
    return away


@pytest.mark.parametrize("count", [1, 5])
def test_distances_equal_those_of_numpy_in_float64(rng, count):
    mix = rng.normal(size=(4, 4))
    features = (rng.normal(size=(count, 3, 2, 4)) @ mix).astype(np.float32)
    query = (rng.normal(size=(3, 2, 4)) @ mix).astype(np.float32)
    fitted = gaussian.fit(jnp.asarray(features), jnp.ones(count), 3.0)
    away = gaussian.distances(jnp.asarray(query)[None], fitted)[0]
    # Cholesky in float32 of matrices with condition up to about 1e3.
    np.testing.assert_allclose(away, by_numpy(features, query, 3.0), rtol=2e-3)
    # Control: other shrinkage, other distances.
    assert np.abs(away - by_numpy(features, query, 30.0)).max() > 0.01


def test_a_shot_of_weight_zero_does_not_count(rng):
    features = jnp.asarray(rng.normal(size=(3, 2, 2, 4)), jnp.float32)
    without = gaussian.fit(features[:2], jnp.ones(2), 3.0)
    weighted = gaussian.fit(features, jnp.array([1.0, 1.0, 0.0]), 3.0)
    # The same sums, one of them with zeros in it.
    np.testing.assert_allclose(weighted.mean, without.mean, atol=1e-5)


def test_a_few_dimensions_are_kept_always_the_same():
    kept = gaussian.kept_dimensions(100, 7)
    assert len(set(kept.tolist())) == 7 and (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(kept, gaussian.kept_dimensions(100, 7))
    np.testing.assert_array_equal(gaussian.kept_dimensions(3, 7), [0, 1, 2])
