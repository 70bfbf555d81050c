"""One DDIM move between two noise levels, and the scanned walk over a table of them.

Walks carry u = latents / sqrt(alpha) instead of latents. In u a move is one fused
multiply-add, u_to = u_from + (sigma_to - sigma_from) * noise_pred, the same for
inversion and sampling; the division by sqrt(alpha) (0.07 at the noisy end), which would
amplify rounding at every step, is paid once. The recursion is float32 whatever the
network computes in.
"""

import chex
import jax
import jax.numpy as jnp

from jaxanom.contracts import Sampler
from jaxanom.diffusion.schedules import Table
from jaxanom.types import Array, NoiseFn


def scaled_move(
    scaled: Array, noise_pred: Array, sigma_from: Array, sigma_to: Array
) -> Array:
    """Moves between two noise levels along the DDIM path, either way.

    arXiv 2010.02502, eq. 12 with sigma = 0, divided by the square root of alpha_to.

    Args:
      scaled: [B, h, w, C] float32, u at the level left.
      noise_pred: [B, h, w, C] of any float type, the estimate at the latents left.
      sigma_from, sigma_to: Float32 scalars, sqrt(1 / alpha - 1) with the cumulative
        product alpha in (0, 1].

    Returns:
      [B, h, w, C] float32, u at the level reached.
    """
    chex.assert_equal_shape([scaled, noise_pred])
    return scaled + (sigma_to - sigma_from) * noise_pred.astype(jnp.float32)


def scale(latents: Array, alpha: Array) -> Array:
    """Returns u = latents / sqrt(alpha), float32."""
    return latents.astype(jnp.float32) / jnp.sqrt(alpha)


def unscale(scaled: Array, alpha: Array) -> Array:
    """Returns latents = u * sqrt(alpha), float32."""
    return scaled * jnp.sqrt(alpha)


def split_noise(sigma_from: Array, sigma_to: Array, eta: float) -> tuple[Array, Array]:
    """Splits the noise of a sampling move into a carried and a fresh part.

    arXiv 2010.02502, eq. 16 divided by sqrt(alpha_to): fresh = eta * sigma_to *
    sqrt(1 - (sigma_to / sigma_from)^2), and carried^2 + fresh^2 = sigma_to^2.

    Args:
      sigma_from, sigma_to: Float32 scalars with sigma_to <= sigma_from.
      eta: 0 is DDIM, 1 ancestral sampling.

    Returns:
      (carried, fresh); with eta = 0 exactly (sigma_to, 0).
    """
    if eta == 0.0:
        return sigma_to, jnp.zeros_like(sigma_to)
    # A move of length zero may start at sigma 0; then nothing is fresh.
    ratio = sigma_to / jnp.maximum(sigma_from, jnp.finfo(jnp.float32).tiny)
    fresh = eta * sigma_to * jnp.sqrt(jnp.maximum(1 - ratio**2, 0.0))
    return jnp.sqrt(jnp.maximum(sigma_to**2 - fresh**2, 0.0)), fresh


def predict(noise_fn: NoiseFn, latents: Array, timestep: Array) -> Array:
    """Calls a noise function at one timestep for all rows; float32 comes back."""
    timesteps = jnp.broadcast_to(timestep, latents.shape[:1])
    return noise_fn(latents, timesteps).astype(jnp.float32)


def sampler(noise_fn: NoiseFn, table: Table) -> Sampler:
    """DDIM as a pair (init, step); the table decides whether it denoises or inverts.

    The state is u at the current level: `init` takes latents at the table's first
    level, and `unscale(state, table.alpha_to[-1])` gives latents at its last.
    """

    def init(latents: Array) -> Array:
        return scale(latents, table.alpha_from[0])

    def step(scaled: Array, row: Table) -> tuple[Array, dict[str, Array]]:
        noise_pred = predict(noise_fn, unscale(scaled, row.alpha_from), row.timesteps)
        scaled = scaled_move(scaled, noise_pred, row.sigma_from, row.sigma_to)
        return scaled, {"noise_rms": jnp.sqrt(jnp.mean(noise_pred**2))}

    return Sampler(init=init, step=step)


def walk(noise_fn: NoiseFn, latents: Array, table: Table) -> Array:
    """Walks latents along a table, as one `lax.scan`.

    Args:
      noise_fn: (latents [B, h, w, C] float32, timesteps [B]) -> [B, h, w, C].
      latents: [B, h, w, C] at the table's first level.
      table: One of `schedules.inversion_table` or `schedules.sampling_table`.

    Returns:
      [B, h, w, C] float32 at the table's last level.
    """
    chex.assert_rank(latents, 4)
    pair = sampler(noise_fn, table)
    scaled, _ = jax.lax.scan(pair.step, pair.init(latents), table)
    return unscale(scaled, table.alpha_to[-1])
