import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import starts

from jaxanom.posterior import pairs


def direct_squared_distances(particles):
    """The same [P, P] from [P, P, D] differences: exact to rounding, for few values."""
    return jnp.sum((particles[:, None] - particles[None, :]) ** 2, axis=-1)


def test_the_matrix_product_gives_the_direct_differences(float64):
    x = starts(7, 5)
    found = pairs.squared_distances(x)
    np.testing.assert_allclose(found, direct_squared_distances(x), atol=1e-13)
    assert np.all(np.diagonal(found) == 0)


def test_digits_survive_far_from_the_origin():
    """Negative control beside it: without the mean they do not."""
    x = jnp.asarray(1000 + 1e-2 * starts(6, 20), jnp.float32)
    wanted = direct_squared_distances(x)
    found = pairs.squared_distances(x)
    # Rounding of 1000 itself, 6e-5, is shared by both; what is left is of sums of 20.
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    inner = x @ x.T
    norms = jnp.diagonal(inner)
    careless = norms[:, None] + norms[None, :] - 2 * inner
    assert np.abs(careless - wanted).max() > 0.1


def test_the_mean_distance_is_over_different_particles():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    assert float(pairs.mean_distance(x)) == pytest.approx(5.0, rel=1e-6)
    assert float(pairs.mean_distance(x[:1])) == 0.0


def test_products_keep_their_precision_wherever_they_run():
    particles = jnp.ones((3, 4))

    def both(x):
        found = pairs.local(3)
        return found.product(found.inner(x, x), x)

    products = [
        equation.params["precision"]
        for equation in jax.make_jaxpr(both)(particles).eqns
        if equation.primitive.name == "dot_general"
    ]
    assert products == [(jax.lax.Precision.HIGHEST,) * 2] * 2
