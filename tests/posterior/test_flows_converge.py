"""Where flows and samplers end: moments, modes, discrepancies, posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from densities import starts, trajectory

from jaxanom.posterior import (
    bandwidths,
    fields,
    integrators,
    kernels,
    ksd,
    sgld,
    svgd,
    transport,
    wgf,
)


def walk(field, grad_log_p, start, eps, num_steps):
    """[num_steps, P, D], every step."""

    def velocity(x, state):
        return fields.velocity(field, state, x, grad_log_p(x))

    run = jax.jit(
        lambda x: trajectory(
            velocity,
            fields.init(field, x),
            integrators.plain(integrators.constant(eps)),
            x,
            num_steps,
        )[0]
    )
    return run(start)


def test_the_mean_of_blob_falls_as_a_lone_particle_would(float64, gaussian):
    """Pair forces cancel: m <- m - eps A (m - mu), for every bandwidth."""
    eps, start = 0.1, starts(7, 3)
    for rule in (bandwidths.fixed(0.5), bandwidths.median()):
        field = fields.Field(wgf.blob(), bandwidth=rule)
        found = walk(field, gaussian.grad_log_p, start, eps, 20).mean(1)
        mean, wanted = np.asarray(start).mean(0), []
        for _ in range(20):
            mean = mean - eps * gaussian.precision @ (mean - gaussian.mean)
            wanted.append(mean)
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_the_mean_of_gfsd_does_not(float64, gaussian):
    """Negative control of the test above."""
    found = walk(fields.Field(wgf.gfsd()), gaussian.grad_log_p, starts(7, 3), 0.1, 20)
    start = np.asarray(starts(7, 3)).mean(0)
    rate = np.eye(3) - 0.1 * gaussian.precision
    wanted = gaussian.mean + np.linalg.matrix_power(rate, 20) @ (start - gaussian.mean)
    assert np.abs(np.asarray(found)[-1].mean(0) - wanted).max() > 1e-3


def test_svgd_with_the_linear_kernel_matches_mean_and_covariance(float64, gaussian):
    """arXiv 1810.11693: exact moments at the fixed point, for more particles than D."""
    field = fields.Field(svgd.flow(), between=kernels.linear)
    x = walk(field, gaussian.grad_log_p, starts(8, 3), 0.05, 6000)[-1]
    np.testing.assert_allclose(x.mean(0), gaussian.mean, atol=1e-9)
    found = np.cov(np.asarray(x), rowvar=False, bias=True)
    np.testing.assert_allclose(found, gaussian.covariance, atol=1e-9)


def test_the_rbf_kernel_does_not(float64, gaussian):
    """Negative control: with few particles SVGD's spread is too small."""
    x = walk(fields.Field(svgd.flow()), gaussian.grad_log_p, starts(8, 3), 0.1, 3000)
    found = np.cov(np.asarray(x[-1]), rowvar=False, bias=True)
    assert np.trace(found) < 0.8 * np.trace(gaussian.covariance)


def test_svgd_in_many_dimensions_collapses():
    """Marginal variances of 8 particles on N(0, I): 0.505, 0.240, 0.060, 0.015 ..."""
    found = []
    for width in (2, 8, 32):
        x = walk(fields.Field(svgd.flow()), lambda x: -x, starts(8, width), 0.5, 3000)
        found.append(float(jnp.mean(x[-1] ** 2)))
    # ... within the digits given; starts differ, and so do the last of them in 2-D.
    np.testing.assert_allclose(found, [0.505, 0.240, 0.060], rtol=0.05)


FLOWS = {
    "svgd": (svgd.flow(), 0.5),
    "gfsd": (wgf.gfsd(), 0.1),
    "blob": (wgf.blob(), 0.1),
    "gfsf": (wgf.gfsf(), 0.1),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_discrepancy_falls_along_every_flow(float64, name, gaussian):
    flow, eps = FLOWS[name]
    start = starts(20, 3, spread=2.0) - 2.0
    walked = walk(fields.Field(flow), gaussian.grad_log_p, start, eps, 200)

    def squared(x):
        matrix = ksd.stein_matrix(
            x, gaussian.grad_log_p(x), 1.0, kernels.imq(1.0, -0.5)
        )
        return ksd.statistics(matrix)[0]

    found = jax.jit(jax.vmap(squared))(jnp.concatenate([start[None], walked[19::20]]))
    found = np.asarray(found)
    assert found[-1] < 0.1 * found[0]
    assert np.all(np.diff(found) < 1e-3 * found[0])


def test_the_discrepancy_grows_where_particles_collapse(float64, gaussian):
    """Negative control: gradient ascent ends at the mode, which is no sample."""
    start = starts(20, 3) + gaussian.mean
    still = fields.Field(wgf.gfsd(), temperature=0.0)
    x = walk(still, gaussian.grad_log_p, start, 0.1, 200)[-1]
    values = [
        float(ksd.statistics(ksd.stein_matrix(y, gaussian.grad_log_p(y)))[0])
        for y in (start, x)
    ]
    assert values[1] > values[0]


def chains(tx, grads, start, num_steps, keep):
    """Runs a sampler on gradients of a loss; pools the last `keep` states."""
    state = tx.init({"x": start})

    def step(carry, _):
        x, state = carry
        updates, state = tx.update({"x": grads(x)}, state, {"x": x})
        x = optax.apply_updates({"x": x}, jax.tree.map(lambda u: -u, updates))["x"]
        return (x, state), x

    _, walked = jax.jit(
        lambda x: jax.lax.scan(step, (x, state), None, length=num_steps)
    )(start)
    return np.asarray(walked[-keep:]).reshape(-1, start.shape[1])


class Mixture:
    """Three Gaussians of unequal weight in the plane."""

    weights, variance = np.array([0.5, 0.3, 0.2]), 0.8
    means = np.array([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.0]])

    @classmethod
    def grad_log_p(cls, x):
        def log_p(point):
            exponent = -0.5 * jnp.sum((point - cls.means) ** 2, -1) / cls.variance
            return jax.nn.logsumexp(jnp.log(cls.weights) + exponent)

        return jax.vmap(jax.grad(log_p))(x)


def test_svgd_covers_every_mode_of_a_mixture(float64):
    start = starts(40, 2, spread=2.0)
    field = fields.Field(svgd.flow())
    x = np.asarray(walk(field, Mixture.grad_log_p, start, 0.5, 500)[-1])
    near = np.linalg.norm(x[:, None] - Mixture.means, axis=-1)
    near = near < np.sqrt(Mixture.variance)
    # Within one deviation of each mode; how many is not claimed: a flow without noise
    # hardly moves mass between modes.
    assert np.all(near.sum(0) >= 2)


def test_langevin_finds_the_moments_of_a_mixture(float64):
    sampler = transport.langevin(lambda k: 0.2, transport.noise_of(2))
    start = starts(3000, 2, spread=3.0)
    x = chains(sampler, lambda x: -Mixture.grad_log_p(x), start, 400, 1)
    weights, means = Mixture.weights, Mixture.means
    mean = weights @ means
    outer = np.einsum("k,ki,kj->ij", weights, means, means)
    covariance = Mixture.variance * np.eye(2) + outer - np.outer(mean, mean)
    # 3000 draws: 2 / sqrt(3000) = 0.04 for a mean; steps of 0.2 bias by some per cent.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(np.cov(x, rowvar=False), covariance, atol=0.4)


def test_sgld_ends_in_its_own_covariance_and_not_the_posteriors(float64, gaussian):
    """(A - eps/4 A^2)^-1 with full gradients; 0.5 is coarse, so the two differ."""
    eps = 1.2
    sampler = transport.langevin(lambda k: eps, transport.noise_of(3))
    x = chains(sampler, lambda x: -gaussian.grad_log_p(x), starts(4000, 3), 60, 1)
    precision = gaussian.precision
    wanted = np.linalg.inv(precision - eps / 4 * precision @ precision)
    found = np.cov(x, rowvar=False)
    # 4000 draws: a variance is known to sqrt(2 / 4000) = 2 %; three times that.
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert np.abs((found - wanted) / scale).max() < 0.07
    assert np.abs((found - gaussian.covariance) / scale).max() > 0.2
    np.testing.assert_allclose(x.mean(0), gaussian.mean, atol=0.1)


def test_temperature_scales_the_covariance(float64, gaussian):
    sampler = transport.langevin(lambda k: 0.1, transport.noise_of(3), temperature=0.25)
    start = gaussian.mean + 0 * starts(2000, 3)
    x = chains(sampler, lambda x: -gaussian.grad_log_p(x), start, 150, 1)
    found = np.trace(np.cov(x, rowvar=False))
    precision = gaussian.precision
    wanted = 0.25 * np.trace(np.linalg.inv(precision - 0.025 * precision @ precision))
    assert found == pytest.approx(wanted, rel=0.08)  # 2000 draws, as above


def test_noisy_svgd_spreads_where_svgd_collapses(float64):
    """8 particles, 8 dimensions: SVGD has 0.24 of the variance, the noisy one all."""
    field = fields.Field(svgd.flow(), bandwidth=bandwidths.fixed(4.0))
    sampler = transport.noisy(field, lambda k: 0.1, transport.noise_of(0))
    x = chains(sampler, lambda x: x, starts(8, 8), 6000, 5000)
    still = walk(field, lambda x: -x, starts(8, 8), 0.1, 2000)[-1]
    # Correlated draws of 64 numbers; an Euler step of 0.1 adds a few per cent.
    assert np.mean(x**2) == pytest.approx(1.0, abs=0.2)
    assert np.mean(np.asarray(still) ** 2) < 0.6


def test_bayesian_linear_regression_from_minibatch_losses(float64):
    """Prior, n and T end to end: losses per datum in, the exact posterior out."""
    rng = np.random.default_rng(0)
    n, noise_var, prior_var, center = 40, 0.25, 0.5, np.array([1.0, -1.0, 0.5])
    design = rng.normal(size=(n, 3))
    y = design @ np.array([0.7, -0.2, 1.1]) + 0.5 * rng.normal(size=n)
    covariance = np.linalg.inv(design.T @ design / noise_var + np.eye(3) / prior_var)
    mean = covariance @ (design.T @ y / noise_var + center / prior_var)
    # lambda = 1 / (2 sigma^2 n) beside the mean loss of a batch of b.
    batches = jnp.arange(n).reshape(8, 5)
    design, y = jnp.asarray(design), jnp.asarray(y)

    def loss(x, rows):
        fit = jnp.mean((y[rows] - x @ design[rows].T) ** 2, -1) / (2 * noise_var)
        prior = jnp.sum((x - center) ** 2, -1) / (2 * prior_var * n)
        return jnp.sum(fit + prior)

    sampler = transport.langevin(lambda k: 0.004, transport.noise_of(1), 1 / n)
    state = sampler.init({"x": starts(1500, 3)})

    def step(carry, number):
        x, state = carry
        rows = batches[number % 8]
        updates, state = sampler.update({"x": jax.grad(loss)(x, rows)}, state, {"x": x})
        return (x - updates["x"], state), None

    run = jax.jit(lambda x: jax.lax.scan(step, (x, state), jnp.arange(1600))[0][0])
    x = np.asarray(run(starts(1500, 3)))
    scale = np.sqrt(np.diag(covariance))
    # 1500 chains know a mean to 0.026 and a variance to 0.037 standard deviations;
    # cycling batches adds a little noise of its own.
    assert np.abs((x.mean(0) - mean) / scale).max() < 0.12
    found = np.cov(x, rowvar=False)
    assert np.abs((found - covariance) / np.outer(scale, scale)).max() < 0.2


def test_preconditioned_langevin_takes_equal_steps_on_unequal_scales(float64):
    """Scales of 1 and 1e-3: pSGLD moves both, SGLD at a stable step only one."""
    precision = np.array([1.0, 1e6])
    x = jnp.asarray([[3.0, 3e-3]])
    squares = jnp.zeros_like(x)
    for _ in range(3):
        move, squares = sgld.psgld_move(
            squares, -x * precision, 1e-1, jnp.zeros_like(x), decay=0.9
        )
    relative = np.abs(np.asarray(move / x))[0]
    assert relative[0] == pytest.approx(relative[1] / 1e3, rel=1e-3)
    plain = np.abs(np.asarray(sgld.sgld_move(-x * precision, 1e-7, 0 * x) / x))[0]
    assert plain[0] == pytest.approx(plain[1] / 1e6, rel=1e-3)


def test_noise_of_a_particle_does_not_depend_on_the_others():
    few, many = (
        sgld.draw(jax.random.key(0), 5, jnp.arange(n), 4, "float32") for n in (3, 9)
    )
    assert np.array_equal(few, many[:3])
    other = sgld.draw(jax.random.key(0), 6, jnp.arange(3), 4, "float32")
    assert not np.array_equal(few, other)


@pytest.mark.parametrize("profile", [kernels.rbf, kernels.imq(1.2, -0.4)])
def test_the_stein_kernel_is_that_of_its_definition(float64, profile, gaussian):
    h = 0.8

    def k(x, y):
        return profile(jnp.sum((x - y) ** 2), jnp.asarray(h)).value

    def stein(x, y):
        sx, sy = (gaussian.grad_log_p(z) for z in (x, y))
        mixed = jax.jacfwd(jax.grad(k, 1), 0)(x, y)
        first, second = jax.grad(k, 0)(x, y), jax.grad(k, 1)(x, y)
        return sx @ sy * k(x, y) + sx @ second + sy @ first + jnp.trace(mixed)

    x = starts(4, 3)
    wanted = jax.jit(jax.vmap(lambda a: jax.vmap(lambda b: stein(a, b))(x)))(x)
    found = ksd.stein_matrix(x, gaussian.grad_log_p(x), h, profile)
    # Off the diagonal only: automatic differentiation of 0^(beta-1) is fine, both are.
    np.testing.assert_allclose(found, wanted, atol=1e-11)
    v, u = ksd.statistics(found)
    assert float(v) == pytest.approx(float(jnp.mean(wanted)))
    assert float(u) == pytest.approx(float((wanted.sum() - jnp.trace(wanted)) / 12))
