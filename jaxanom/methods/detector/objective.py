"""Phase "segment": focal loss on augmented batches."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxanom.contracts import LossFn
from jaxanom.losses import segmentation
from jaxanom.methods.detector.options import Options
from jaxanom.types import Array, PRNGKey


def make_loss(
    segmenter: nn.Module, options: Options, fixed_category_ids: Sequence[int]
) -> LossFn:
    """Returns the focal loss over the pixels of valid rows.

    Args:
      segmenter: Network from images to logits.
      options: The focal exponent, and how images are augmented.
      fixed_category_ids: Categories whose rows are never mirrored.
    """

    def loss_fn(params, frozen, batch, key):
        del frozen
        fixed = jnp.asarray(fixed_category_ids, jnp.int32)
        mirrors = ~jnp.isin(batch["category_id"], fixed)
        image, mask = augment(key, batch["image"], batch["mask"], mirrors, options)
        logits = segmenter.apply({"params": params}, image)  # [B, H, W, 2]
        loss = segmentation.focal(logits, mask, options.gamma, valid=batch["valid"])
        return loss, {"focal": loss}

    return loss_fn


def augment(
    key: PRNGKey, image: Array, mask: Array, mirrors: Array, options: Options
) -> tuple[Array, Array]:
    """Mirrors and recolours each row by draws of its own.

    Args:
      key: Decides this step's draws.
      image: [B, H, W, 3] in [0, 1].
      mask: [B, H, W].
      mirrors: [B] bool; False rows keep their orientation.
      options: Which axes, how much light; all off returns the input.

    Returns:
      (image, mask), image still in [0, 1].
    """
    flips = (options.flip_horizontal, options.flip_vertical)
    if not any((*flips, options.brightness, options.contrast)):
        return image, mask
    draws = jax.random.uniform(key, (image.shape[0], 4))
    one = functools.partial(_augment_row, options=options)
    return jax.vmap(one)(image, mask, mirrors, draws)


def _augment_row(
    image: Array, mask: Array, mirrors: Array, draws: Array, options: Options
) -> tuple[Array, Array]:
    """One row: image [H, W, 3], mask [H, W], mirrors scalar, draws [4] in [0, 1)."""
    draw_vertical, draw_horizontal, draw_shift, draw_gain = draws
    for axis, enabled, draw in (
        (0, options.flip_vertical, draw_vertical),
        (1, options.flip_horizontal, draw_horizontal),
    ):
        if enabled:
            flip = mirrors & (draw < 0.5)
            image = jnp.where(flip, jnp.flip(image, axis), image)
            mask = jnp.where(flip, jnp.flip(mask, axis), mask)
    if options.brightness or options.contrast:
        shift = options.brightness * (2 * draw_shift - 1)
        gain = 1 + options.contrast * (2 * draw_gain - 1)
        mean = jnp.mean(image)
        image = jnp.clip((image - mean) * gain + mean + shift, 0.0, 1.0)
    return image, mask
