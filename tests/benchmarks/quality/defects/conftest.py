"""A subject of walks whose network is a formula, and which counts its calls."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quality.defects import walks
from jaxanom.diffusion import schedules

SHAPE = (2, 4, 4, 3)


def network(latents, timesteps, told):
    """Every output depends on every pixel; a rough denoiser."""
    mixed = latents.mean((1, 2), keepdims=True) + latents[..., ::-1]
    time = timesteps[:, None, None, None] / 500
    return 0.7 * latents + jnp.tanh(0.4 * mixed + time + told)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def subject(calls):
    rng = np.random.default_rng(0)
    mask = np.zeros((*SHAPE[:3], 1), np.float32)
    mask[0, 1:3, :2] = mask[1, 0, 3] = 1

    def background_fn(latents, timesteps):
        calls.append(1)
        return network(latents, timesteps, 0.0)

    def pair_fn(latents, seen, timesteps):
        calls.append(1)
        assert seen is None  # replayed
        return network(latents, timesteps, 1.0), None

    return walks.Subject(
        jnp.asarray(rng.standard_normal(SHAPE), jnp.float32),
        jnp.asarray(mask),
        jnp.asarray(rng.standard_normal(SHAPE), jnp.float32),
        background_fn,
        pair_fn,
        schedules.alphas_cumprod(),
    )
