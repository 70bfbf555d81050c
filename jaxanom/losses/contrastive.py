"""Contrastive image-text loss in which a text can be true of several images."""

import chex
import jax
import jax.numpy as jnp

from jaxanom.types import Array, Metrics


def loss(
    image_features: Array, text_features: Array, logit_scale: Array, positives: Array
) -> tuple[Array, Metrics]:
    """Symmetric cross-entropy over cosine logits with soft targets.

    arXiv 2103.00020, section 2.3, which takes every other row of the batch as a
    negative. Where captions repeat, that asks the towers to tell equal texts apart;
    here each row's target is uniform over its positives (arXiv 2004.11362, eq. 2,
    across modalities). With distinct captions both are the same; otherwise the least
    loss is the entropy of the targets, not 0, and is reported as "floor".

    Args:
      image_features, text_features: [B, D], pooled, of any norm.
      logit_scale: Positive scalar, the inverse temperature (not its logarithm).
      positives: [B, B] bool, entry (i, j): text j is true of image i.

    Returns:
      (float32 scalar, {"image_to_text", "text_to_image", "floor", "accuracy"});
      accuracy is the share of images whose best text is true of them.
    """
    chex.assert_equal_shape([image_features, text_features])
    chex.assert_shape(positives, (image_features.shape[0],) * 2)
    logits = _unit(image_features) @ _unit(text_features).T  # [B, B]
    logits = jnp.asarray(logit_scale, jnp.float32) * logits

    def direction(logits: Array, positives: Array) -> tuple[Array, Array]:
        count = jnp.maximum(jnp.sum(positives, 1), 1)  # [B]
        targets = positives / count[:, None]  # [B, B]
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), 1)
        return jnp.mean(losses), jnp.mean(jnp.log(count))

    image_to_text, floor_image = direction(logits, positives)
    text_to_image, floor_text = direction(logits.T, positives.T)
    best = jnp.argmax(logits, 1)
    metrics = {
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
        "floor": (floor_image + floor_text) / 2,
        "accuracy": jnp.mean(jnp.take_along_axis(positives, best[:, None], 1)),
    }
    return (image_to_text + text_to_image) / 2, metrics


def _unit(features: Array) -> Array:
    features = features.astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)
