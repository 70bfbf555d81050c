"""From calibrated channel maps to one map and one number: the settings h of a run.

Fused map M = sum_c w_c (m_c - mu_c) / sd_c; image score = (1 - lambda) * mean of the
top share q of M + lambda * calibrated a_0. The mu and sd are those of normal material
that is not in the memory: a shot compared with itself has distance 0. Pixels are told
apart by M smoothed and images by M as it is, as in WinCLIP and PatchCore: on procedural
images smoothing helps the one and costs the other
(`benchmarks/quality/few_shot/smoothing.py`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.adp.memory import crops
from jaxanom.models.features import patches
from jaxanom.types import Array

SIGMA_AT = 256
"""Side in pixels that smoothing widths are given at."""
SIGMAS = (4.0, 2.0, 6.0)
SHARES = (0.0, 0.005, 0.01, 0.02)
"""Top share of the map that is averaged; 0 is the maximum."""
IMAGE_WEIGHTS = (0.5, 0.0, 0.25, 0.75)
"""lambda; of these three the first is the default."""

LEAST_VIEWS = 8
AMOUNT = 0.12
"""Largest zoom of a view, as a fraction of the side."""
SMALLEST_SPREAD = 1e-4


class Settings(NamedTuple):
    """h, of one detector or stacked over a leading axis.

    Attributes:
      cells: [C] int32, the variant of every channel.
      weights: [C], on the simplex.
      sigma: smoothing in pixels of a 256 px map; 0 for none.
      share: q.
      image_weight: lambda.
    """

    cells: Array
    weights: Array
    sigma: Array
    share: Array
    image_weight: Array


def default(
    weights: tuple[float, ...], has_language: bool, sigma: float = SIGMAS[0]
) -> Settings:
    """Returns the untuned settings: the maximum, lambda 0.5, sigma 4 or as given.

    Without C1, the first channel where it is on, or where C1 has no weight, there is
    no a_0 to trust and lambda is 0. C1 alone scores images by a_0 alone, as WinCLIP
    does without shots (arXiv 2303.14814, section 4.2): nothing of it is of the shots.
    """
    total, image_weight = sum(weights), 0.0
    if has_language and weights[0] > 0:
        image_weight = 1.0 if weights[0] == total else IMAGE_WEIGHTS[0]
    return Settings(
        cells=jnp.zeros(len(weights), jnp.int32),
        weights=jnp.asarray(weights, jnp.float32) / total,
        sigma=jnp.float32(sigma),
        share=jnp.float32(SHARES[0]),
        image_weight=jnp.float32(image_weight),
    )


def smoothing(side: int, sigma: Array) -> Array:
    """Returns `patches.smoothing` of a map `side` wide.

    Args:
      side: Side of the map.
      sigma: scalar, in pixels of a map `SIGMA_AT` wide; 0 is the identity.
    """
    return patches.smoothing(side, sigma * side / SIGMA_AT)


def smooth(values: Array, sigma: Array) -> Array:
    """Smooths maps [B, m, m], each row by its own sigma [B]."""
    matrix = jax.vmap(lambda width: smoothing(values.shape[1], width))(sigma)
    return jnp.einsum("bik,bkl,bjl->bij", matrix, values, matrix)


def top_mean(values: Array, share: Array, largest: float = max(SHARES)) -> Array:
    """Mean of the highest share of each map, at least of one value.

    Args:
      values: [B, m, m].
      share: [B], in [0, largest].
      largest: share that the ranking goes down to; ranking all would cost ten times.
    """
    flat = values.reshape(values.shape[0], -1)
    kept = max(1, math.ceil(largest * flat.shape[1]))
    ranked, _ = jax.lax.top_k(flat, kept)
    count = jnp.clip(jnp.round(share * flat.shape[1]), 1, kept)[:, None]
    inside = jnp.arange(kept) < count
    return jnp.sum(jnp.where(inside, ranked, 0.0), axis=1) / count[:, 0]


def distinct_shares(side: int) -> tuple[float, ...]:
    """Returns those of `SHARES` that differ on a map of side x side values."""
    counts = [max(1, round(share * side**2)) for share in SHARES]
    return tuple(share for n, share in enumerate(SHARES) if counts[n] not in counts[:n])


def image_score(values: Array, whole: Array, settings: Settings) -> Array:
    """Image scores of fused maps, not smoothed.

    Args:
      values: [B, m, m].
      whole: [B], calibrated a_0.
      settings: leaves [B].
    """
    weight = settings.image_weight
    return (1 - weight) * top_mean(values, settings.share) + weight * whole


def to_image(values: Array, size: tuple[int, int]) -> Array:
    """Enlarges maps [B, m, m] to [B, H, W], bilinear."""
    return jax.image.resize(values, (values.shape[0], *size), "linear")


class Calibration(NamedTuple):
    """Statistics of one category.

    Attributes:
      centre, spread: [N], over the maps of each of N cells of all channels.
      image_centre, image_spread: [Y], over a_0 at each temperature.
    """

    centre: np.ndarray
    spread: np.ndarray
    image_centre: np.ndarray
    image_spread: np.ndarray


def calibration_images(
    shots: np.ndarray, least: int = LEAST_VIEWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns normal images to calibrate on, and the shot each must not be told of.

    With two shots or more each is scored as if it had not been seen; one shot has no
    other, and slightly shifted and enlarged views of it stand in, which no entry of the
    memory matches exactly.

    Args:
      shots: [K, H, W, 3] float in [0, 1], square.
      least: Fewest images.
      seed: Decides the views.

    Returns:
      (images [M, H, W, 3], left_out [M] int32). K >= 2: the shots and views of them,
      each without its own shot. K = 1: views alone, nobody left out.
    """
    count = len(shots)
    per_shot = max(1, math.ceil(least / count))
    parts, left_out = [], []
    for number, shot in enumerate(shots):
        own = patches.NOBODY if count == 1 else number
        num_views = per_shot if count == 1 else per_shot - 1
        if count > 1:
            parts.append(shot[None])
        if num_views:
            boxes = crops.views(num_views, AMOUNT, seed + number)
            parts.append(crops.crop(shot, boxes, shot.shape[0]))
        left_out += [own] * per_shot
    return np.concatenate(parts), np.array(left_out, np.int32)


def calibrate(maps: np.ndarray, image_values: np.ndarray) -> Calibration:
    """Takes mean and standard deviation over images and places.

    Args:
      maps: [N, M, m, m], each cell's maps of M normal images.
      image_values: [Y, M], a_0 of the same images at each temperature.
    """
    maps = np.asarray(maps, np.float64)
    values = np.asarray(image_values, np.float64)

    def spread(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.maximum(array.std(axes), SMALLEST_SPREAD).astype(np.float32)

    return Calibration(
        centre=maps.mean((1, 2, 3)).astype(np.float32),
        spread=spread(maps, (1, 2, 3)),
        image_centre=values.mean(1).astype(np.float32),
        image_spread=spread(values, (1,)),
    )


def standardised(maps: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Standardises [N, M, m, m] cell by cell."""
    centre, spread = calibration.centre, calibration.spread
    centre, spread = (x[:, None, None, None] for x in (centre, spread))
    return (maps - centre) / spread
