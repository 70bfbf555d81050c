"""Keeps the part of a requested mask in which a generated image really changed.

arXiv 2411.16767 returns a refined mask m*, whose formula (Eq. 13) is not public; this
is our reading. The generated image is compared with the same pipeline's output without
a defect, so that autoencoder and inversion errors cancel: m* = m AND (change > thr).

The threshold is Otsu's, over the pixels of the dilated mask: the ring outside the mask
is unchanged by construction and supplies the second class even where all of m changed.
Otsu always splits, though, and would split rounding noise where nothing was drawn: so a
fixed threshold is the floor under his. Where a defect has a strong middle and a weak
rim he splits between the two, and pixels that changed visibly are called normal; the
floor alone (`otsu` False) keeps them all.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxanom.types import Array

NUM_BINS = 256
WINDOW = 5
# The standard deviation that a window of 5 just holds: weights fall to 0.2 at the edge.
WINDOW_SIGMA = 1.1


def changed(
    generated: Array,
    reference: Array,
    mask: Array,
    floor: float = 0.08,
    dilation: int = 8,
    otsu: bool = True,
) -> tuple[Array, Array]:
    """Finds what was drawn: the refined masks but for `drop_small`, on the device.

    Args:
      generated, reference: [B, H, W, 3] in [0, 1], with and without the defect.
      mask: [B, H, W], binary, 1 = where a defect was requested.
      floor: Least change in [0, 1] intensity that counts as drawn.
      dilation: Pixels of unchanged ring for Otsu's second class; the default is one
        cell of a latent grid eight times coarser than the image.
      otsu: False takes the floor for the threshold.

    Returns:
      ([B, H, W] bool, [B] float32 thresholds).
    """
    chex.assert_equal_shape([generated, reference])
    chex.assert_shape(mask, generated.shape[:3])
    change = smooth(difference(generated, reference))  # [B, H, W]
    inside = mask > 0.5
    threshold = jnp.full(mask.shape[:1], floor, jnp.float32)  # [B]
    if otsu:
        region = dilate(inside, dilation)
        threshold = jnp.maximum(jax.vmap(otsu_threshold)(change, region), floor)
    return inside & (change > threshold[:, None, None]), threshold


def difference(generated: Array, reference: Array) -> Array:
    """Returns the mean absolute difference over channels, [B, H, W] float32."""
    gap = generated.astype(jnp.float32) - reference.astype(jnp.float32)
    return jnp.mean(jnp.abs(gap), axis=-1)


def smooth(maps: Array) -> Array:
    """Smooths [B, H, W] by a 5x5 Gaussian; the border repeats the edge pixels."""
    reach = WINDOW // 2
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / WINDOW_SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (reach, reach)
        padded = jnp.pad(maps, pad, mode="edge")
        size = maps.shape[axis]
        maps = sum(
            weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, weight in enumerate(weights)
        )
    return maps


def dilate(mask: Array, radius: int) -> Array:
    """Grows a [B, H, W] bool mask by `radius` pixels in a square window."""
    window = (1, 2 * radius + 1, 2 * radius + 1)
    return jax.lax.reduce_window(
        mask, False, jax.lax.bitwise_or, window, (1, 1, 1), "SAME"
    )


def otsu_threshold(values: Array, region: Array) -> Array:
    """Returns the threshold that best splits the values of a region in two.

    N. Otsu, 1979: maximises the variance between the classes over 256 bins from the
    region's least to its largest value. Thresholds inside a gap between the classes are
    all equally good; the middle of the gap is taken.

    Args:
      values: [...] float32.
      region: [...] bool; values outside it are not looked at.

    Returns:
      A float32 scalar; 0 for an empty region.
    """
    low = jnp.min(values, where=region, initial=jnp.inf)
    high = jnp.max(values, where=region, initial=-jnp.inf)
    low, high = jnp.where(jnp.any(region), jnp.stack([low, high]), 0.0)
    width = jnp.maximum(high - low, jnp.finfo(jnp.float32).tiny) / NUM_BINS
    bins = jnp.clip((values - low) / width, 0, NUM_BINS - 1).astype(jnp.int32)
    weights = region.astype(jnp.float32).ravel()
    counts = jnp.zeros(NUM_BINS).at[bins.ravel()].add(weights)
    places = jnp.arange(NUM_BINS, dtype=jnp.float32)
    below = jnp.cumsum(counts)  # [bins]
    moment = jnp.cumsum(counts * places)
    above = below[-1] - below
    gap = moment / jnp.maximum(below, 1) - (moment[-1] - moment) / jnp.maximum(above, 1)
    between = below * above * gap**2
    first = jnp.argmax(between)
    last = NUM_BINS - 1 - jnp.argmax(between[::-1])
    return low + width * ((first + last) / 2 + 1)


def drop_small(masks: np.ndarray, min_fraction: float = 5e-4) -> np.ndarray:
    """Removes 8-connected regions under a share of the image, on the host.

    Args:
      masks: [B, H, W] bool.
      min_fraction: Least share of H * W that a region has to cover.
    """
    least = min_fraction * masks.shape[1] * masks.shape[2]
    kept = np.zeros(masks.shape, bool)
    for row, mask in enumerate(masks):
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(labels.ravel())
        areas[0] = 0
        kept[row] = (areas >= max(least, 1))[labels]
    return kept
