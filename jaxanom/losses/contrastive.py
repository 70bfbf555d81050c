"""Contrastive image-text loss in which equal captions are positives of each other."""

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array, Metrics


def loss(
    image_features: Array,
    text_features: Array,
    logit_scale: Array,
    caption_ids: Array,
    valid: Array | None = None,
) -> tuple[Array, Metrics]:
    """Symmetric cross-entropy over cosine logits with soft targets.

    arXiv 2103.00020, section 2.3, which takes every other row of the batch as a
    negative. Where captions repeat, that asks the towers to tell equal texts apart;
    here each row's target is uniform over the rows with its caption (arXiv 2004.11362,
    eq. 2, across modalities). With distinct captions both are the same; otherwise the
    least loss is the entropy of the targets, not 0, and is reported as "floor".

    Args:
      image_features, text_features: [B, D], pooled, of any norm.
      logit_scale: positive scalar, the inverse temperature (not its logarithm).
      caption_ids: [B] int32; equal ids mean equal captions.
      valid: [B] bool, False on padding rows: neither positives nor negatives.

    Returns:
      (float32 scalar, {"image_to_text", "text_to_image", "floor", "accuracy"});
      accuracy is the share of images whose best text carries their caption.
    """
    chex.assert_shape(caption_ids, image_features.shape[:1])
    same = caption_ids[:, None] == caption_ids[None, :]
    return matched(image_features, text_features, logit_scale, same, valid)


def matched(
    image_features: Array,
    text_features: Array,
    logit_scale: Array,
    positives: Array,
    valid: Array | None = None,
) -> tuple[Array, Metrics]:
    """The same loss when a text can be true of other images than its own.

    Args:
      image_features, text_features, logit_scale, valid: as in `loss`.
      positives: [B, B] bool, entry (i, j): text j is true of image i.

    Returns:
      As in `loss`; accuracy is the share of images whose best text is true of them.
    """
    chex.assert_equal_shape([image_features, text_features])
    chex.assert_shape(positives, (image_features.shape[0],) * 2)
    if valid is None:
        valid = jnp.ones(image_features.shape[:1], bool)
    images = _unit(image_features)
    texts = _unit(text_features)
    logits = jnp.asarray(logit_scale, jnp.float32) * (images @ texts.T)  # [B, B]
    same = positives & valid[:, None] & valid
    rows = valid.astype(jnp.float32)
    share = rows / jnp.maximum(jnp.sum(rows), 1)

    def direction(logits: Array, same: Array) -> tuple[Array, Array]:
        count = jnp.maximum(jnp.sum(same, 1), 1)  # [B]
        # A large finite value: -inf times a target of 0 would be NaN.
        log_prob = jax.nn.log_softmax(jnp.where(valid[None, :], logits, -1e9))
        targets = same / count[:, None]  # [B, B]
        return (
            -jnp.sum(share * jnp.sum(targets * log_prob, 1)),
            jnp.sum(share * jnp.log(count)),
        )

    image_to_text, floor_image = direction(logits, same)
    text_to_image, floor_text = direction(logits.T, same.T)
    best = jnp.argmax(jnp.where(valid[None, :], logits, -1e9), 1)
    hit = jnp.take_along_axis(same, best[:, None], 1)[:, 0]
    metrics = {
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
        "floor": (floor_image + floor_text) / 2,
        "accuracy": jnp.sum(share * hit),
    }
    return (image_to_text + text_to_image) / 2, metrics


def _unit(features: Array) -> Array:
    features = features.astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)
