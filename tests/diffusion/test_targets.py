import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import schedules, targets

ALPHAS = schedules.alphas_cumprod()
TIMESTEPS = jnp.array([0, 250, 999])


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    return jnp.asarray(clean + 0.5), jnp.asarray(noise)


def test_noised_latents_have_the_scheduled_signal_and_noise(pair):
    found = targets.add_noise(*pair, TIMESTEPS, ALPHAS)
    for row, timestep in enumerate(TIMESTEPS):
        alpha = ALPHAS[int(timestep)]
        wanted = np.sqrt(alpha) * pair[0][row] + np.sqrt(1 - alpha) * pair[1][row]
        np.testing.assert_allclose(found[row], wanted, atol=1e-6)  # float32 rounding


def test_noise_scale_at_the_clean_end_keeps_all_digits():
    """Negative control inside: 1 - alpha taken in float32 loses three of them."""
    one = jnp.ones((1, 1, 1, 1))
    found = float(targets.add_noise(one * 0, one, jnp.array([0]), ALPHAS).item())
    exact = np.sqrt(1 - ALPHAS[0])
    assert found == pytest.approx(exact, rel=1e-7)
    assert np.sqrt(1 - np.float32(ALPHAS[0])) != pytest.approx(exact, rel=2e-6)


def test_velocity_and_noise_are_the_same_target_in_two_coordinates(pair):
    noised = targets.add_noise(*pair, TIMESTEPS, ALPHAS)
    velocity = targets.velocity(*pair, TIMESTEPS, ALPHAS)
    noise = targets.noise_from_velocity(velocity, noised, TIMESTEPS, ALPHAS)
    np.testing.assert_allclose(noise, pair[1], atol=1e-6)
    # Negative control: a sign error shows.
    wrong = targets.noise_from_velocity(-velocity, noised, TIMESTEPS, ALPHAS)
    assert np.abs(wrong - pair[1]).max() > 0.1


def test_weighted_noise_regression_is_velocity_regression(pair):
    noised = targets.add_noise(*pair, TIMESTEPS, ALPHAS)
    velocity = targets.velocity(*pair, TIMESTEPS, ALPHAS)
    estimate = jnp.sin(noised)
    noise_pred = targets.noise_from_velocity(estimate, noised, TIMESTEPS, ALPHAS)
    weights = targets.velocity_weights(TIMESTEPS, ALPHAS)
    found = jnp.mean((pair[1] - noise_pred) ** 2, (1, 2, 3)) * weights
    wanted = jnp.mean((velocity - estimate) ** 2, (1, 2, 3))
    # float32 rounding of the noise, magnified by up to 1 / alpha = 215.
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert not np.allclose(found / weights, wanted, rtol=0.1), "unweighted differs"


def test_timesteps_are_uniform_over_the_training_range():
    draws = np.asarray(targets.draw_timesteps(jax.random.key(0), 20000, 10))
    assert draws.dtype == np.int32
    # 2000 per value, deviation 42; 4 sigma of ten values.
    assert np.abs(np.bincount(draws, minlength=10) - 2000).max() < 170
