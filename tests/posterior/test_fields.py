"""Every flow: one particle, symmetries, stationary points known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import starts

from jaxanom.posterior import bandwidths, fields, kernels, svgd, wgf

FLOWS = {
    "svgd": svgd.flow(),
    "gfsd": wgf.gfsd(),
    "blob": wgf.blob(),
    "gfsf": wgf.gfsf(),
}


@functools.partial(jax.jit, static_argnums=0)
def first(field, x, grad_log_p):
    return fields.velocity(field, fields.init(field, x), x, grad_log_p)[0]


def velocity(name, x, grad_log_p, **changes):
    return first(fields.Field(FLOWS[name], **changes), x, grad_log_p)


@pytest.mark.parametrize("name", FLOWS)
def test_one_particle_climbs_the_gradient(name):
    x, grads = jnp.array([[1.0, -2.0]]), jnp.array([[0.3, 0.7]])
    # The ridge of gfsf has nothing to divide: its force is 0.
    np.testing.assert_allclose(velocity(name, x, grads), grads, rtol=1e-6)


STATIONARY = {
    "svgd": lambda h: np.sqrt(h / 2 * np.log(1 + 2 / h)),
    "gfsf": lambda h: np.sqrt(h / 2 * np.log(1 + 2 / h)),
    "blob": lambda h: np.sqrt(h / 2 * np.log((4 - h) / h)),
    "gfsd": lambda h: np.sqrt(h / 2 * np.log((2 - h) / h)),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_two_particles_rest_where_the_algebra_says(float64, name):
    h, mean = 0.6, 1.5
    flow = wgf.gfsf(ridge=0.0) if name == "gfsf" else FLOWS[name]
    field = fields.Field(flow, bandwidth=bandwidths.fixed(h))

    def at(a):
        x = jnp.array([[mean - a], [mean + a]])
        return first(field, x, mean - x)

    rest = STATIONARY[name](h)
    np.testing.assert_allclose(at(rest), 0, atol=1e-12)
    assert at(0.9 * rest)[1, 0] > 0 > at(1.1 * rest)[1, 0]  # and is stable


def test_the_published_stationary_points():
    found = [STATIONARY[name](0.6) for name in ("svgd", "blob", "gfsd")]
    np.testing.assert_allclose(found, [0.66325, 0.72137, 0.50417], atol=5e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_permuted_particles_have_permuted_velocities(float64, name, gaussian):
    x = starts(6, 3)
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = velocity(name, x, gaussian.grad_log_p(x))
    again = velocity(name, x[order], gaussian.grad_log_p(x[order]))
    np.testing.assert_allclose(again, moved[order], atol=1e-12)


@pytest.mark.parametrize("name", FLOWS)
def test_turning_and_shifting_particles_turns_their_velocities(float64, name, gaussian):
    x, shift = starts(6, 3), np.array([1.0, 2.0, -3.0])
    turn, _ = np.linalg.qr(np.asarray(starts(3, 3, seed=5)))
    grads = gaussian.grad_log_p(x)
    moved = velocity(name, x, grads)
    found = velocity(name, x @ turn + shift, grads @ turn)
    np.testing.assert_allclose(found, moved @ turn, atol=1e-11)


def test_the_reference_form_of_gfsf_does_feel_the_origin(float64, gaussian):
    """Negative control: its ridge pulls towards 0, which a shift shows."""
    x, grads = starts(6, 3), gaussian.grad_log_p(starts(6, 3))
    field = fields.Field(wgf.gfsf(form="reference"))
    moved, shifted = (first(field, y, grads) for y in (x, x + 5.0))
    assert np.abs(moved - shifted).max() > 1e-2


@pytest.mark.parametrize("name", FLOWS)
def test_temperature_weighs_the_push_alone(float64, name, gaussian):
    x = starts(5, 3)
    grads = gaussian.grad_log_p(x)
    cold, warm, hot = (velocity(name, x, grads, temperature=t) for t in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(hot - cold, 2 * (warm - cold), atol=1e-12)
    assert np.any(np.asarray(warm != cold))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("rule", ["median", "fixed"])
def test_velocities_stay_finite_where_particles_coincide(name, rule):
    x = jnp.full((4, 8192), 0.02)
    rules = {"median": bandwidths.median(), "fixed": bandwidths.fixed(1e-10)}
    moved = velocity(name, x, jnp.ones_like(x), bandwidth=rules[rule])
    assert np.all(np.isfinite(moved))
    # All alike, so all moved alike, up the gradient.
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], x.shape), atol=1e-2)
    assert np.all(np.asarray(moved) > 0.5)


def test_a_metric_scales_gradients_and_distances_but_not_the_force(float64):
    x, grads = starts(5, 3), starts(5, 3, seed=1)
    field = fields.Field(svgd.flow(), metric=fields.Metric(decay=0.5, damping=0.1))
    moved, state, _ = jax.jit(
        lambda x, g: fields.velocity(field, fields.init(field, x), x, g)
    )(x, grads)
    scale = np.sqrt(np.mean(np.square(grads), 0)) + 0.1
    r2 = np.sum(scale * (x[:, None] - x[None]) ** 2, -1)
    h = np.median(r2) / (2 * np.log(6))
    gram = np.exp(-r2 / (2 * h))
    push = np.einsum("ij,ijd->id", gram / h, x[:, None] - x[None])
    np.testing.assert_allclose(moved, (gram @ (grads / scale) + push) / 5, atol=1e-12)
    assert state.metric.shape == (3,) and int(state.count) == 1


METRIC = fields.Metric(decay=0.5, damping=0.1)


def metric_of(grads):
    """Q after one step."""
    return np.sqrt(np.mean(np.square(grads), 0)) + METRIC.damping


def test_a_metric_holds_for_the_linear_kernel_too(float64):
    """k = x^T Q y + 1, whose force Q P x_i meets Q^-1."""
    x, grads = starts(5, 3), starts(5, 3, seed=1)
    found = velocity("svgd", x, grads, between=kernels.linear, metric=METRIC)
    scale = metric_of(grads)
    gram = (x * scale) @ x.T + 1
    np.testing.assert_allclose(found, (gram @ (grads / scale)) / 5 + x, atol=1e-12)


def test_a_metric_scales_a_force_found_elsewhere(float64):
    x, grads = starts(5, 4), starts(5, 4, seed=1)
    matrix = starts(4, 2, seed=2)
    field = fields.Field(wgf.gfsd(), metric=METRIC)
    found, _, _ = jax.jit(
        lambda x, g: fields.velocity(
            field, fields.init(field, x), x, g, embed=lambda y: y @ matrix
        )
    )(x, grads)
    seen = x @ matrix
    push = velocity("gfsd", seen, 0 * seen) @ matrix.T
    np.testing.assert_allclose(found, (grads + push) / metric_of(grads), atol=1e-12)


@pytest.mark.parametrize("rule", [bandwidths.median(), bandwidths.heat_equation()])
@pytest.mark.parametrize("name", FLOWS)
def test_a_metric_is_the_plain_flow_in_other_units(float64, name, rule):
    """Of the particles' coordinates; at rest, so that the bandwidth settles."""
    x, grads = starts(5, 3), starts(5, 3, seed=1)
    root = np.sqrt(metric_of(grads))

    @functools.partial(jax.jit, static_argnums=0)
    def tenth(field, x, grads):
        def step(state, _):
            found, state, _ = fields.velocity(field, state, x, grads)
            return state, found

        return jax.lax.scan(step, fields.init(field, x), length=10)[1][-1]

    plain = fields.Field(FLOWS[name], bandwidth=rule)
    found = tenth(plain._replace(metric=METRIC), x, grads)
    wanted = tenth(plain, x * root, grads / root) / root
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_forces_found_elsewhere_are_pulled_back(float64):
    """With a linear embedding A the push is that of x A, times A^T."""
    x, grads = starts(5, 4), starts(5, 4, seed=1)
    matrix = starts(4, 2, seed=2)
    field = fields.Field(wgf.gfsd())
    found, _, _ = jax.jit(
        lambda x, g: fields.velocity(
            field, fields.init(field, x), x, g, embed=lambda y: y @ matrix
        )
    )(x, grads)
    seen = x @ matrix
    small = first(field, seen, 0 * seen)
    np.testing.assert_allclose(found, grads + small @ matrix.T, atol=1e-12)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_matrix_form_equals_the_loop_over_pairs(float64, name, gaussian):
    """SVGD as Algorithm 1 writes it: a double loop and automatic differentiation."""
    h = 0.8
    plain = {
        "rbf": lambda a, b: jnp.exp(-jnp.sum((a - b) ** 2) / (2 * h)),
        "imq": lambda a, b: (1 + jnp.sum((a - b) ** 2) / h) ** -0.5,
    }[name]
    x = starts(4, 3)
    grads = gaussian.grad_log_p(x)
    term = jax.jit(lambda xi, xj, gj: plain(xj, xi) * gj + jax.grad(plain)(xj, xi))
    pairs = list(zip(x, grads, strict=True))
    wanted = [sum(term(xi, xj, gj) for xj, gj in pairs) for xi in x]
    found = velocity(
        "svgd",
        x,
        grads,
        between=kernels.NAMES[name](),
        bandwidth=bandwidths.fixed(h),
    )
    np.testing.assert_allclose(found, np.stack(wanted) / 4, atol=1e-12)


@pytest.mark.parametrize("normalise", svgd.NORMALISATIONS)
def test_the_noise_of_svgd_has_the_covariance_of_its_drive(float64, normalise):
    """Drive is F grad log p over particles; noise needs covariance F, whatever F."""
    x = starts(4, 3)
    field = fields.Field(svgd.flow(normalise))
    state = fields.init(field, x)

    def noise_of(row):
        draw = jnp.zeros((4, 3)).at[row, 0].set(1.0)
        info = fields.velocity(field, state, x, jnp.zeros_like(x), noise=draw)[2]
        return info["noise"][:, 0]

    root = jax.jit(lambda: jnp.stack([noise_of(row) for row in range(4)], axis=1))()
    drive = jnp.stack(
        [
            first(field._replace(temperature=0.0), x, jnp.eye(4)[:, [i] * 3])[:, 0]
            for i in range(4)
        ],
        axis=1,
    )
    np.testing.assert_allclose(root @ root.T, drive, atol=1e-4)  # the jitter
    with pytest.raises(ValueError, match="no noise"):
        fields.velocity(fields.Field(wgf.gfsd()), state, x, x, noise=x)
