"""Diagonal Gaussians."""

import jax.numpy as jnp

from jaxanom.types import Array


def draw(mean: Array, variance: Array, noise: Array) -> Array:
    """Returns mean + sqrt(variance) * noise; the three [..., D] broadcast."""
    return mean + jnp.sqrt(variance) * noise


def logdensity(point: Array, mean: Array, variance: Array) -> Array:
    """Log-density up to the constant -D/2 log(2 pi), which cancels in differences.

    Kept out because it would cost digits: it is 706 for D = 768, and a difference of
    two log-densities can be near 0.

    Args:
      point, mean, variance: [..., D]; variance > 0.

    Returns:
      [...] float32.
    """
    return -0.5 * jnp.sum(jnp.log(variance) + (point - mean) ** 2 / variance, -1)


def standard_logdensity(point: Array) -> Array:
    """`logdensity` of N(0, I) at [..., D], without the same constant."""
    return -0.5 * jnp.sum(point**2, -1)
