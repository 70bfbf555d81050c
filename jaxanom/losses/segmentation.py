"""Focal and Dice losses on anomaly maps.

Logits in, float32 inside: log-probabilities come from `log_softmax`, which keeps both
the value and the gradient finite for a confident mistake.
"""

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array


def focal(
    logits: Array,
    mask: Array,
    gamma: float = 2.0,
    class_balanced: bool = False,
    valid: Array | None = None,
) -> Array:
    """Focal loss of a two-class segmenter, -(1 - p)^gamma log p at the true class.

    arXiv 1708.02002, eq. 4.

    Args:
      logits: [B, H, W, 2], normal then defect, before the softmax; or [B, H, W], the
        defect's log-odds.
      mask: [B, H, W], binary, 1 = defect.
      gamma: Focal exponent; 0 gives the cross-entropy.
      class_balanced: Takes the sum of the mean over defect pixels and the mean over
        normal pixels, each over the whole batch (0 for a class that has none), as
        arXiv 2503.10080's code has it; otherwise the mean over all pixels.
      valid: [B] bool, False on padding rows.

    Returns:
      A float32 scalar.
    """
    logits = logits.astype(jnp.float32)
    if logits.ndim == mask.ndim:
        chex.assert_equal_shape([logits, mask])
        log_defect, log_normal = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    else:
        chex.assert_shape(logits, (*mask.shape, 2))
        log_prob = jax.nn.log_softmax(logits)
        log_normal, log_defect = log_prob[..., 0], log_prob[..., 1]
    counts = _pixel_weights(mask, valid)
    truth = mask > 0.5
    log_true = jnp.where(truth, log_defect, log_normal)
    # 1 - p from the other class's logarithm: 1 - exp(log p) rounds to 0 near p = 1.
    other = jnp.exp(jnp.where(truth, log_normal, log_defect))
    pixels = -(other**gamma) * log_true * counts
    if not class_balanced:
        return jnp.sum(pixels) / jnp.maximum(jnp.sum(counts), 1e-8)
    means = [
        jnp.sum(pixels * member) / (jnp.sum(counts * member) + 1e-8)
        for member in (truth, ~truth)
    ]
    return means[0] + means[1]


def dice(
    probability: Array,
    mask: Array,
    smoothing: float = 1e-5,
    valid: Array | None = None,
) -> Array:
    """Dice loss of the defect class, 1 - (2 |P G| + s) / (|P| + |G| + s).

    One ratio for the batch: an image without a defect has no overlap of its own.

    Args:
      probability: [B, H, W] in [0, 1].
      mask: [B, H, W], binary, 1 = defect.
      smoothing: The s above.
      valid: [B] bool, False on padding rows.

    Returns:
      A float32 scalar.
    """
    chex.assert_equal_shape([probability, mask])
    counts = _pixel_weights(mask, valid)
    truth = (mask > 0.5).astype(jnp.float32)
    guess = probability.astype(jnp.float32)
    overlap = jnp.sum(counts * guess * truth)
    size = jnp.sum(counts * guess) + jnp.sum(counts * truth)
    return 1 - (2 * overlap + smoothing) / (size + smoothing)


def _pixel_weights(mask: Array, valid: Array | None) -> Array:
    """Returns [B, H, W] float32: 1, and 0 on padding rows."""
    counts = jnp.ones(mask.shape, jnp.float32)
    return counts if valid is None else jnp.where(valid[:, None, None], counts, 0.0)
