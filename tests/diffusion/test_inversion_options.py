"""Ancestral noise with an exact denoiser, and the calls that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.diffusion import inversion, schedules

ALPHAS = schedules.alphas_cumprod()


def unused(*_):
    raise AssertionError("the call should have been refused before this")


def test_eta_reproduces_the_spread_of_gaussian_data():
    """Ancestral sampling with the exact noise keeps the marginals N(0, 1)."""
    down = schedules.sampling_table(ALPHAS, schedules.levels(1000, 100))
    draws = np.random.default_rng(0).standard_normal((16, 8, 8, 4))
    start = jnp.asarray(draws, jnp.float32)
    mask = jnp.ones((16, 8, 8, 1))
    alphas = jnp.asarray(ALPHAS, jnp.float32)

    def exact(latents, background_latents, timesteps):
        alpha = alphas[timesteps][:, None, None, None]
        return jnp.sqrt(1 - alpha) * latents, jnp.zeros_like(latents)

    found = inversion.compose_sample(
        exact, start, mask, down, eta=0.7, key=jax.random.key(1)
    )
    # 4096 draws: 1.1 % at one sigma; 100 steps leave a bias of about 1 %.
    assert float(found.std()) == pytest.approx(1, abs=0.045)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, m, u, d: inversion.compose_sample(unused, z, m, u), "sampling"),
        (lambda z, m, u, d: inversion.masked_invert(unused, z, m, d), "inversion"),
        (
            lambda z, m, u, d: inversion.masked_invert(unused, z, m, u, -1),
            "fixed_point_iterations=-1",
        ),
        (
            lambda z, m, u, d: inversion.masked_invert(unused, z, m[:, ::2], u),
            "resize the mask",
        ),
        (
            lambda z, m, u, d: inversion.compose_sample(unused, z, m, d, z[None]),
            "same levels",
        ),
        (
            lambda z, m, u, d: inversion.compose_sample(unused, z, m, d, eta=0.5),
            "eta=0.5",
        ),
    ],
)
def test_a_bad_call_is_refused_by_name(call, message):
    levels = schedules.levels(1000, 5)
    latents, mask = jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1))
    up = schedules.inversion_table(ALPHAS, levels)
    down = schedules.sampling_table(ALPHAS, levels)
    with pytest.raises(ValueError, match=message):
        call(latents, mask, up, down)
