"""Cross-entropy over the logits of classes."""

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array


def cross_entropy(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """Mean of -log softmax(logits)[target] over the rows that are valid.

    Args:
      logits: [..., B, K], any leading axes, such as particles.
      target: [B] int32 in 0..K-1.
      valid: [B] bool, False on padding rows; at least one is True.

    Returns:
      [...], one mean per leading index, float32 or wider.
    """
    chex.assert_shape(target, logits.shape[-2:-1])
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Subtracted from the logits, not the log-probabilities: one pass less.
    picked = jnp.take_along_axis(
        wide, jnp.broadcast_to(target[..., None], (*wide.shape[:-1], 1)), axis=-1
    )[..., 0]
    losses = jax.nn.logsumexp(wide, axis=-1) - picked  # [..., B]
    if valid is None:
        return jnp.mean(losses, axis=-1)
    weights = valid.astype(losses.dtype)
    return jnp.sum(losses * weights, axis=-1) / jnp.sum(weights)


def accuracy(logits: Array, target: Array, valid: Array | None = None) -> Array:
    """Share of valid rows whose largest logit is the target's; shapes as above."""
    hits = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    weights = jnp.ones_like(hits) if valid is None else valid.astype(jnp.float32)
    return jnp.sum(hits * weights, axis=-1) / jnp.sum(weights, axis=-1)
