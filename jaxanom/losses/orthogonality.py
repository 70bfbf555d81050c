"""Decorrelation of text features."""

import chex
import jax.numpy as jnp

from jaxanom.losses import denoising
from jaxanom.types import Array


def squared_cosine(features: Array, valid: Array | None = None) -> Array:
    """Mean squared cosine between different features of a row, a float32 scalar.

    As in the code of arXiv 2503.10080: the diagonal is zero but counts in the mean, so
    B equal features give (B - 1) / B and one feature alone 0.

    Args:
      features: [N, B, D], any length.
      valid: [N] bool, False on padding rows.
    """
    chex.assert_rank(features, 3)
    features = features.astype(jnp.float32)
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    cosine = jnp.einsum("nbd,ncd->nbc", unit, unit)
    apart = 1 - jnp.eye(features.shape[1])
    return denoising.row_mean(jnp.mean(cosine**2 * apart, (1, 2)), valid)
