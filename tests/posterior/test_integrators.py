import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import starts, trajectory

from jaxanom.posterior import integrators

SCALING = integrators.constant(0.05)
ALL = {
    "plain": integrators.plain(SCALING),
    "decay": integrators.plain(integrators.decay(0.5, 0.55)),
    "rms": integrators.plain(integrators.rms(0.02)),
    "wag": integrators.wag(SCALING, 3.5),
    "wnes": integrators.wnes(SCALING, 1.0),
    "polyak": integrators.polyak(SCALING, 0.6),
}


def walk(integrator, num_steps, scale=1.0):
    """Down a quadratic bowl around (1, -2), whose narrow side is `scale` wide."""
    center, curvature = np.array([1.0, -2.0]), np.array([1.0, 1 / scale**2])

    def velocity(x, state):
        return -(x - center) * curvature, state, {}

    run = jax.jit(lambda x: trajectory(velocity, (), integrator, x, num_steps)[0])
    return np.asarray(run(starts(3, 2, seed=1))) - center


@pytest.mark.parametrize("name", ALL)
def test_every_integrator_comes_down_a_bowl(float64, name):
    found = np.abs(walk(ALL[name], 400)).max((1, 2))
    # RMS scaling ends in steps of about eps whatever the slope.
    assert found[-1] < (0.05 if name == "rms" else 0.02)
    assert found[-1] < 0.05 * found[0]


def test_plain_steps_are_those_of_gradient_descent(float64):
    found = walk(ALL["plain"], 10)
    start = np.asarray(starts(3, 2, seed=1)) - np.array([1.0, -2.0])
    np.testing.assert_allclose(found[-1], start * 0.95**10, rtol=1e-12)


def test_accelerated_steps_are_faster_down_a_narrow_valley(float64):
    """Condition 100: the steps allowed by the narrow side are short on the wide one."""
    small = integrators.constant(0.005)
    plain, nesterov, heavy = (
        np.abs(walk(made, 150, scale=0.1)[-1]).max()
        for made in (
            integrators.plain(small),
            integrators.wnes(small, 1.0, 1.0),
            integrators.polyak(small, 0.8),
        )
    )
    assert nesterov < 0.2 * plain and heavy < 0.5 * plain


def test_the_first_rms_step_has_length_eps_in_every_direction(float64):
    made = ALL["rms"]
    state = made.init(starts(3, 2))
    moved = made.step(state, jnp.asarray([[5.0, -1e-2]] * 3), None)
    step = np.asarray(moved.particles - state.particles)
    np.testing.assert_allclose(np.abs(step), 0.02, rtol=1e-3)


def test_injected_noise_fades_and_is_the_one_given(float64):
    made = integrators.polyak(SCALING, 0.0, noise_scale=2.0, power=1.0)
    state = made.init(jnp.zeros((1, 1)))
    for k in (1, 2, 3):
        before = state.particles
        state = made.step(state, jnp.zeros((1, 1)), jnp.ones((1, 1)))
        assert (state.particles - before).item() == pytest.approx(0.05 * 2.0 / k)


def test_a_state_gives_its_buffers_away_once():
    """The whole state can be donated: no two fields share memory."""
    state = ALL["wag"].init(jnp.ones((2, 2)))
    step = jax.jit(lambda s: ALL["wag"].step(s, s.at, None), donate_argnums=0)
    assert np.all(np.isfinite(step(state).particles))
