"""What a noise network is trained on: timesteps, noised latents, targets, weights.

`alphas_cumprod` is always the float64 host array of `schedules.alphas_cumprod`. Square
roots are taken before the cast to float32, because 1 - alpha loses four digits in
float32 at the clean end.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.types import Array, PRNGKey


def draw_timesteps(key: PRNGKey, batch_size: int, num_train_timesteps: int) -> Array:
    """Draws training indices uniformly from [0, num_train_timesteps), int32 [B]."""
    return jax.random.randint(key, (batch_size,), 0, num_train_timesteps)


def add_noise(
    latents: Array, noise: Array, timesteps: Array, alphas_cumprod: np.ndarray
) -> Array:
    """Returns sqrt(alpha_t) latents + sqrt(1 - alpha_t) noise, float32.

    Args:
      latents, noise: [B, h, w, C]; the latents are clean.
      timesteps: [B] int32.
      alphas_cumprod: [T] float64, on the host.
    """
    chex.assert_equal_shape([latents, noise])
    signal, spread = _scales(alphas_cumprod, timesteps, latents.ndim)
    return signal * latents + spread * noise


def velocity(
    latents: Array, noise: Array, timesteps: Array, alphas_cumprod: np.ndarray
) -> Array:
    """Returns the velocity target sqrt(alpha_t) noise - sqrt(1 - alpha_t) latents.

    arXiv 2202.00512, section 4; the arguments are those of `add_noise`.
    """
    chex.assert_equal_shape([latents, noise])
    signal, spread = _scales(alphas_cumprod, timesteps, latents.ndim)
    return signal * noise - spread * latents


def noise_from_velocity(
    velocity_pred: Array,
    noised_latents: Array,
    timesteps: Array,
    alphas_cumprod: np.ndarray,
) -> Array:
    """Returns the noise estimate that a velocity estimate at z_t implies, float32."""
    chex.assert_equal_shape([velocity_pred, noised_latents])
    signal, spread = _scales(alphas_cumprod, timesteps, noised_latents.ndim)
    return signal * velocity_pred.astype(jnp.float32) + spread * noised_latents


def velocity_weights(timesteps: Array, alphas_cumprod: np.ndarray) -> Array:
    """Returns 1 / alpha per row, [B] float32.

    Noise regression with these weights is velocity regression: the two errors of one
    estimate differ by the factor sqrt(alpha) (arXiv 2202.00512, section 4).
    """
    weights = 1 / np.asarray(alphas_cumprod, np.float64)
    return jnp.asarray(weights, jnp.float32)[timesteps]


def _scales(
    alphas_cumprod: np.ndarray, timesteps: Array, ndim: int
) -> tuple[Array, Array]:
    """Returns sqrt(alpha_t) and sqrt(1 - alpha_t), [B, 1, ...] float32 each."""
    chex.assert_rank(timesteps, 1)
    alphas = np.asarray(alphas_cumprod, np.float64)
    shape = (-1,) + (1,) * (ndim - 1)
    signal = jnp.asarray(np.sqrt(alphas), jnp.float32)[timesteps]
    spread = jnp.asarray(np.sqrt(1 - alphas), jnp.float32)[timesteps]
    return signal.reshape(shape), spread.reshape(shape)
