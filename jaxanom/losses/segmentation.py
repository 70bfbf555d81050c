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
    weights: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """Focal loss of a two-class segmenter, -(1 - p)^gamma log p at the true class.

    arXiv 1708.02002, eq. 4.

    Args:
      logits: [B, H, W, 2], normal then defect, before the softmax.
      mask: [B, H, W], binary, 1 = defect.
      gamma: 0 gives the cross-entropy.
      class_balanced: the sum of the mean over defect pixels and the mean over normal
        pixels, each over the whole batch (0 for a class that has none), as
        arXiv 2503.10080's code has it; otherwise the mean over all pixels.
      weights: [B, H, W], per pixel.
      valid: [B] bool, False on padding rows.

    Returns:
      A float32 scalar.
    """
    chex.assert_shape(logits, (*mask.shape, 2))
    log_prob = jax.nn.log_softmax(logits.astype(jnp.float32))
    return _focal(
        log_prob[..., 1],
        log_prob[..., 0],
        mask,
        gamma,
        class_balanced,
        _pixel_weights(mask, weights, valid),
    )


def binary_focal(
    logits: Array,
    mask: Array,
    gamma: float = 2.0,
    class_balanced: bool = False,
    weights: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """`focal` for one logit per pixel, [B, H, W]: the defect's log-odds."""
    chex.assert_equal_shape([logits, mask])
    logits = logits.astype(jnp.float32)
    return _focal(
        jax.nn.log_sigmoid(logits),
        jax.nn.log_sigmoid(-logits),
        mask,
        gamma,
        class_balanced,
        _pixel_weights(mask, weights, valid),
    )


def dice(
    probability: Array,
    mask: Array,
    smoothing: float = 1e-5,
    per_image: bool = False,
    weights: Array | None = None,
    valid: Array | None = None,
) -> Array:
    """Dice loss of the defect class, 1 - (2 |P G| + s) / (|P| + |G| + s).

    Args:
      probability: [B, H, W] in [0, 1].
      mask: [B, H, W], binary, 1 = defect.
      smoothing: s.
      per_image: the mean of one ratio per image, instead of one ratio for the batch. An
        image without defect then has a loss near 1 for any probability: prefer the
        batch form where normal images are common.
      weights, valid: as in `focal`.

    Returns:
      A float32 scalar.
    """
    chex.assert_equal_shape([probability, mask])
    counts = _pixel_weights(mask, weights, valid)
    truth = (mask > 0.5).astype(jnp.float32)
    guess = probability.astype(jnp.float32)
    axes = (1, 2) if per_image else (0, 1, 2)
    overlap = jnp.sum(counts * guess * truth, axes)
    size = jnp.sum(counts * guess, axes) + jnp.sum(counts * truth, axes)
    ratio = 1 - (2 * overlap + smoothing) / (size + smoothing)
    if not per_image:
        return ratio
    rows = jnp.ones(mask.shape[0]) if valid is None else valid.astype(jnp.float32)
    return jnp.sum(rows * ratio) / jnp.maximum(jnp.sum(rows), 1)


def _focal(
    log_defect: Array,
    log_normal: Array,
    mask: Array,
    gamma: float,
    class_balanced: bool,
    counts: Array,
) -> Array:
    """Focal loss from both classes' log-probabilities; the rest [B, H, W]."""
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


def _pixel_weights(mask: Array, weights: Array | None, valid: Array | None) -> Array:
    """Returns [B, H, W] float32: `weights`, 0 on padding rows."""
    counts = jnp.ones(mask.shape, jnp.float32) if weights is None else weights
    if valid is None:
        return counts
    return jnp.where(valid[:, None, None], counts, 0.0)
