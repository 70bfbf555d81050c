"""Planar flows: log-determinants against autodiff, and the constraint on u."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.posterior import flows

WIDTH, STEPS = 5, 4


def draw(rows=3, scale=0.4, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    flow = flows.Planar(
        normal(rows, STEPS, WIDTH), normal(rows, STEPS, WIDTH), normal(rows, STEPS)
    )
    return normal(rows, WIDTH) / scale, flow


@pytest.mark.parametrize("constraint", flows.CONSTRAINTS)
def test_log_determinants_are_those_of_the_jacobian(constraint):
    point, flow = draw()
    _, logdet = flows.push(point, flow, constraint)
    for row in range(3):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], flow)
        jacobian = jax.jacobian(lambda z, one=one: flows.push(z, one, constraint)[0])
        wanted = jnp.linalg.slogdet(jacobian(point[row]))[1]
        # FLOOR under each of the logarithms, and float32.
        np.testing.assert_allclose(logdet[row], wanted, atol=STEPS * 1e-4)
        assert abs(wanted) > 10 * STEPS * 1e-4  # not a flow that does nothing


def test_steps_are_taken_in_order():
    point, flow = draw(rows=1)
    moved, total = point, 0.0
    for k in range(STEPS):
        moved, logdet = flows.step(moved, flow.u[:, k], flow.w[:, k], flow.b[:, k])
        total = total + logdet
    found = flows.push(point, flow)
    np.testing.assert_allclose(found[0], moved, rtol=1e-6)
    np.testing.assert_allclose(found[1], total, rtol=1e-6, atol=1e-6)
    turned = flows.Planar(*(leaf[:, ::-1] for leaf in flow))
    assert np.abs(flows.push(point, turned)[0] - moved).max() > 1e-3


def test_one_flow_moves_many_points_and_many_flows_one():
    point, flow = draw()
    one = jax.tree.map(lambda leaf: leaf[0], flow)
    moved, logdet = flows.push(point, one)
    assert moved.shape == (3, WIDTH) and logdet.shape == (3,)
    many, _ = flows.push(point[0], flow)
    np.testing.assert_allclose(many[0], moved[0], rtol=1e-6)


def test_constrained_steps_never_fold_and_free_ones_may():
    _, flow = draw(rows=50, scale=1.5)
    along = jnp.sum(flow.u * flow.w, -1)
    assert (along < -1).any()  # negative control
    bent = flows.invertible(flow.u, flow.w)
    # softplus of -30 is nothing beside 1: float32 rounding is left.
    assert (jnp.sum(bent * flow.w, -1) > -1 - 1e-5).all()
    # Only the part along w moves.
    apart = bent - flow.u
    share = jnp.sum(apart * flow.w, -1, keepdims=True) / jnp.sum(
        flow.w**2, -1, keepdims=True
    )
    np.testing.assert_allclose(apart, share * flow.w, atol=1e-5)


def test_an_unknown_constraint_is_refused():
    with pytest.raises(ValueError, match=r"'always'.*invertible"):
        flows.push(*draw(), "always")
