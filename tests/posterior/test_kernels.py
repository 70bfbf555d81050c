import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import starts

from jaxanom.posterior import kernels
from jaxanom.posterior import pairs as pairing

H = 0.7
PLAIN = {
    "rbf": lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / (2 * H)),
    "imq": lambda x, y: (1 + jnp.sum((x - y) ** 2) / H) ** -0.5,
    "linear": lambda x, y: x @ y + 1,
}


def interaction(name, x, bandwidth=H):
    pairs = pairing.local(x.shape[0])
    r2 = pairing.squared_distances(x)
    between = kernels.NAMES[name]()(x, r2, jnp.asarray(bandwidth, x.dtype), pairs)
    return between, kernels.repulsion(x, between, pairs)


@pytest.mark.parametrize("name", PLAIN)
def test_gram_and_force_are_those_of_the_plain_kernel(float64, name):
    x, plain = starts(6, 4), PLAIN[name]
    between, force = interaction(name, x)
    gram = jax.vmap(lambda a: jax.vmap(lambda b: plain(a, b))(x))(x)
    np.testing.assert_allclose(between.gram, gram, atol=1e-13)
    # sum_j grad_{x_j} k(x_j, x_i); the self-term of the linear kernel counts too.
    grads = jax.vmap(lambda a: jax.vmap(lambda b: jax.grad(plain)(b, a))(x))(x)
    np.testing.assert_allclose(force, grads.sum(1), atol=1e-12)


def test_the_force_points_away_from_the_others():
    _, force = interaction("rbf", jnp.array([[0.0], [1.0]]))
    assert force[0, 0] < 0 < force[1, 0]


@pytest.mark.parametrize("name", ["rbf", "imq"])
@pytest.mark.parametrize("bandwidth", [1e-10, 1.0])
def test_coincident_particles_feel_nothing_and_stay_finite(name, bandwidth):
    x = jnp.full((5, 4096), 0.02)
    between, force = interaction(name, x, bandwidth)
    assert np.all(np.isfinite(between.gram)) and np.all(np.isfinite(force))
    assert np.abs(force).max() < 1e-3


@pytest.mark.parametrize("name", PLAIN)
def test_a_lone_radial_particle_feels_no_force(name):
    _, force = interaction(name, jnp.array([[1.0, 2.0]]))
    assert np.all(force == 0) == (name != "linear")


def test_profiles_are_the_derivatives_they_claim(float64):
    for profile in (kernels.rbf, kernels.imq(1.3, -0.3)):
        value = lambda r2, p=profile: p(r2, jnp.asarray(H)).value  # noqa: E731
        found = profile(jnp.asarray(0.9), jnp.asarray(H))
        assert float(found.first) == pytest.approx(float(jax.grad(value)(0.9)))
        second = jax.grad(jax.grad(value))(0.9)
        assert float(found.second) == pytest.approx(float(second))


@pytest.mark.parametrize("wrong", [{"offset": 0.0}, {"exponent": 0.5}])
def test_imq_refuses_what_is_no_kernel(wrong):
    with pytest.raises(ValueError, match="imq"):
        kernels.imq(**wrong)
