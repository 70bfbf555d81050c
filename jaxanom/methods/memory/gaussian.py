"""A Gaussian at every position of the grid, in the manner of PaDiM.

arXiv 2011.08785, section III: mean and covariance per position over normal images, of
randomly kept dimensions, and the Mahalanobis distance. A handful of shots gives no
covariance of a position; it is shrunk to that of all positions (the paper adds 0.01 to
the diagonal, which a handful leaves singular in all but name).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.types import Array

RIDGE = 0.01
"""Added to the diagonal, as a share of its mean."""


class Gaussians(NamedTuple):
    """One normal distribution per position, of one view of one category.

    Attributes:
      mean: [h, w, d].
      whitening: [h, w, d, d], W with W W^T the inverse covariance.
    """

    mean: Array
    whitening: Array


def kept_dimensions(width: int, count: int) -> np.ndarray:
    """Draws which of `width` dimensions are kept, ascending; all if there are few."""
    order = np.random.default_rng(0).permutation(width)
    return np.sort(order[: min(count, width)])


def fit(features: Array, weight: Array, shrinkage: float) -> Gaussians:
    """Fits the Gaussians to shots.

    Covariance of a position with n shots: (n S + v S_all) / (n + v), S about its own
    mean, S_all over all positions and shots about their common mean.

    Args:
      features: [K, h, w, d].
      weight: [K], 1 for shots that count and 0 for others; at least one counts.
      shrinkage: v, in shots.
    """
    count = jnp.sum(weight)
    mean = jnp.einsum("k,khwd->hwd", weight, features) / count
    middle = jnp.mean(mean, axis=(0, 1))
    away = features - middle
    number = count * features.shape[1] * features.shape[2]
    whole = jnp.einsum("k,khwd,khwe->de", weight, away, away) / number
    around = features - mean
    own = jnp.einsum("k,khwd,khwe->hwde", weight, around, around)  # n S
    covariance = (own + shrinkage * whole) / (count + shrinkage)
    eye = jnp.eye(features.shape[-1])
    covariance += RIDGE * jnp.trace(whole) / len(eye) * eye
    lower = jnp.linalg.cholesky(covariance)
    inverse = jax.scipy.linalg.solve_triangular(
        lower, jnp.broadcast_to(eye, lower.shape), lower=True
    )
    return Gaussians(mean, jnp.swapaxes(inverse, -1, -2))


def distances(features: Array, gaussians: Gaussians) -> Array:
    """Mahalanobis distances of patches [B, h, w, d] at their positions: [B, h, w]."""
    away = features - gaussians.mean
    return jnp.linalg.norm(
        jnp.einsum("bhwd,hwde->bhwe", away, gaussians.whitening), axis=-1
    )
