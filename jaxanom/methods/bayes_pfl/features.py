"""What the frozen image tower says of an image, computed once and kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxanom.models.clip import towers
from jaxanom.types import Array, Batch, Frozen, Params

KEPT = ("label", "mask", "category_id", "defect_id", "valid")


class Features(NamedTuple):
    """Frozen features of N images.

    Attributes:
      image_features: [N, D], the pooled and projected class token, not normalised.
      patch_tokens: [N, S, L, V], outputs of S layers, before any norm or projection.
    """

    image_features: Array
    patch_tokens: Array


def look(
    tower: towers.ImageTower, params: Params, image: Array, layers: tuple[int, ...]
) -> Features:
    """Encodes images [N, H, W, 3] in [0, 1]; no gradient passes."""
    output = tower.apply({"params": params}, image, return_layers=layers)
    patch_tokens = jnp.stack([state[:, 1:] for state in output.hidden_states], axis=1)
    return jax.lax.stop_gradient(
        Features(output.image_features, patch_tokens.astype(jnp.float32))
    )


def of_batch(
    tower: towers.ImageTower, frozen: Frozen, batch: Batch, layers: tuple[int, ...]
) -> Features:
    """Returns the features a batch carries, or encodes its images."""
    if "patch_tokens" in batch:
        return Features(batch["image_features"], batch["patch_tokens"])
    return look(tower, frozen["clip"], batch["image"], layers)


def make_encode(tower: towers.ImageTower, layers: tuple[int, ...]):
    """Returns encode: (frozen, batch with images) -> batch with features instead."""

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        return {
            **look(tower, frozen["clip"], batch["image"], layers)._asdict(),
            "row_seed": row_seeds(batch["image"]),
            **{name: batch[name] for name in KEPT},
        }

    return encode


def row_seeds(image: Array) -> Array:
    """Returns [N] uint32, a hash of each image's own 8-bit values.

    Prediction noise is seeded by it: the same image draws the same noise in any batch.
    Sums and products of integers modulo 2^32, so that no rounding enters.
    """
    values = jnp.round(image * 255).astype(jnp.uint32).reshape(image.shape[0], -1)
    place = jnp.arange(values.shape[1], dtype=jnp.uint32)
    # An odd factor per position: no change of one value can vanish.
    factors = (place * jnp.uint32(2654435761) ^ (place >> 7)) | jnp.uint32(1)
    return jnp.sum((values + 1) * factors, axis=1, dtype=jnp.uint32)
