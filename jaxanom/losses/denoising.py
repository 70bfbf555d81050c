"""Noise regression, over whole latents or inside a mask."""

import chex
import jax.numpy as jnp

from jaxanom.types import Array


def regression(
    target: Array,
    noise_pred: Array,
    mask: Array | None = None,
    area_balanced: bool = False,
    weights: Array | None = None,
) -> Array:
    """Mean of || mask * (target - noise_pred) ||^2, a float32 scalar.

    Selects instead of multiplying, so that nothing outside the mask reaches the value
    or the gradient, not even a NaN.

    Args:
      target, noise_pred: [B, h, w, C], noise or velocity.
      mask: [B, h, w, 1], binary, 1 = counts; None counts everything.
      area_balanced: Divides a row's sum by its masked elements rather than by all
        h*w*C, so that small masks are not given a small share of the gradient.
      weights: [B], per-timestep weights such as `targets.velocity_weights`.
    """
    chex.assert_equal_shape([target, noise_pred])
    error = target.astype(jnp.float32) - noise_pred.astype(jnp.float32)
    if mask is not None:
        chex.assert_shape(mask, (*target.shape[:-1], 1))
        error = jnp.where(mask > 0.5, error, 0.0)
    squares = error**2
    axes = tuple(range(1, squares.ndim))
    if area_balanced:
        area = jnp.sum(mask > 0.5, axes) * target.shape[-1]
        per_row = jnp.sum(squares, axes) / jnp.maximum(area, 1)  # [B]
    else:
        per_row = jnp.mean(squares, axes)  # [B]
    return jnp.mean(per_row if weights is None else per_row * weights)


def row_mean(per_row: Array, valid: Array | None = None) -> Array:
    """Returns the mean of [B] over its valid rows; 0 if there are none."""
    if valid is None:
        return jnp.mean(per_row)
    total = jnp.sum(jnp.where(valid, per_row, 0.0))
    return total / jnp.maximum(jnp.sum(valid), 1)
