"""Noise regression, over whole latents or inside a mask."""

import chex
import jax.numpy as jnp

from jaxanom.types import Array


def regression(
    target: Array,
    noise_pred: Array,
    weights: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """Mean squared error of a noise (or velocity) estimate, a float32 scalar.

    Args:
      target, noise_pred: [B, h, w, C].
      weights: [B], per-timestep weights such as `targets.min_snr_weights`.
      valid: [B] bool, False on padding rows.
    """
    whole = jnp.ones((*target.shape[:-1], 1), jnp.float32)
    return masked_regression(target, noise_pred, whole, weights=weights, valid=valid)


def masked_regression(
    target: Array,
    noise_pred: Array,
    mask: Array,
    area_balanced: bool = False,
    weights: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """Mean of || mask * (target - noise_pred) ||^2, a float32 scalar.

    Selects instead of multiplying, so that nothing outside the mask reaches the value
    or the gradient, not even a NaN.

    Args:
      target, noise_pred: [B, h, w, C].
      mask: [B, h, w, 1], binary, 1 = counts.
      area_balanced: divide a row's sum by its masked elements rather than by all h*w*C,
        so that small masks are not given a small share of the gradient.
      weights, valid: as in `regression`.
    """
    chex.assert_equal_shape([target, noise_pred])
    chex.assert_shape(mask, (*target.shape[:-1], 1))
    inside = mask > 0.5
    error = target.astype(jnp.float32) - noise_pred.astype(jnp.float32)
    squares = jnp.where(inside, error, 0.0) ** 2
    axes = tuple(range(1, squares.ndim))
    if area_balanced:
        area = jnp.sum(inside, axes) * target.shape[-1]
        per_row = jnp.sum(squares, axes) / jnp.maximum(area, 1)  # [B]
    else:
        per_row = jnp.mean(squares, axes)  # [B]
    if weights is not None:
        per_row = per_row * weights
    return row_mean(per_row, valid)


def row_mean(per_row: Array, valid: Array | None = None) -> Array:
    """Returns the mean of [B] over its valid rows; 0 if there are none."""
    if valid is None:
        return jnp.mean(per_row)
    total = jnp.sum(jnp.where(valid, per_row, 0.0))
    return total / jnp.maximum(jnp.sum(valid), 1)
